"""report: what train, evaluate and sample wrote -> pictures and pages in reports/, and the run in MLflow."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from minilm.checkpoint import WEIGHTS, read_info
from minilm.errors import InputError
from minilm.files import FILM, MODEL, REPORTS, all_or_nothing, project_root, read_json, read_table
from minilm.model.config import MOST_EXPLORED
from minilm.params import FIELDS, load_params
from stages import run

LINKS = {"The report of this run": "report.html", "Surprisal, character by character": "surprisal.html"}


def main() -> None:
    """Write the report, and make MLflow's run of the model complete."""
    with ProcessPoolExecutor(1) as pool:
        written = pool.submit(write_report)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # `make sync` is patient
        # MLflow and its store take as long to load as the report to draw: one core for each.
        from minilm.tracking.run import warn
        from minilm.tracking.store import open_store
        from minilm.tracking.sync import sync

        try:
            opened = open_store(project_root())
            if not written.exception():  # waits until it is written
                sync(*opened, project_root(), Path.cwd())
        except Exception as error:  # MLflow's, SQLAlchemy's, of requests: a view must not fail the pipeline
            warn(error)
        written.result()


def write_report() -> None:
    """Draw the pictures and write the pages."""
    # Imported here, since the process that waits for MLflow needs no matplotlib.
    from minilm.report import html, plots
    from minilm.report.explorer.page import explorer_page, model_data, read_weights, run_data

    params = load_params("params.yaml").report
    info = read_info(MODEL)
    print("report:", info.data)
    names = ("train", "metrics", "evaluation", "samples")
    training, metrics, evaluation, samples = (read_json(REPORTS / f"{name}.json") for name in names)
    if not evaluation["model_sha256"] == samples["model_sha256"] == info.model_sha256:
        raise InputError(f"{REPORTS}: evaluation or samples are of another model; run dvc repro")
    kinds = read_table(REPORTS / "loss_by_kind.csv")
    used = params.model_dump() | info.params | {"eval_context": evaluation["eval_context"]}
    used |= {"prompt": samples["prompt"]} | samples["settings"]
    curves, explored = read_table(REPORTS / "loss.csv"), evaluation["num_parameters"] <= MOST_EXPLORED
    with all_or_nothing(REPORTS) as new:
        weights, text = samples["attention"]["weights"], samples["attention"]["text"]
        plots.attention(np.array(weights), text, new / "attention.png")
        plots.loss_curves(curves, new / "loss.png")
        plots.loss_by_position(read_table(REPORTS / "loss_by_position.csv"), new / "loss_by_position.png")
        bins = read_table(REPORTS / "calibration.csv")
        plots.calibration(bins, new / "calibration.png", metrics["test_calibration_error"])
        plots.loss_by_kind(kinds, new / "loss_by_kind.png")
        page = html.report_page(
            info=info,
            weights_bytes=(MODEL / WEIGHTS).stat().st_size,
            training=training,
            metrics=metrics,
            evaluation=evaluation,
            samples=samples,
            kinds=kinds,
            pictures=new,
            params=used,
            defaults={key: FIELDS[key].default for key in used},
            explored=explored,
        )
        (new / "report.html").write_text(page, encoding="utf-8")
        page = html.surprisal_page(evaluation, info.data.dataset)
        (new / "surprisal.html").write_text(page, encoding="utf-8")
        page = html.no_explorer_page()
        if explored:
            data = model_data(MODEL) | run_data(read_weights(FILM), training, curves, evaluation, samples)
            page = explorer_page(f"MiniLM on {data['dataset']}", [data], LINKS)
        (new / "explorer.html").write_text(page, encoding="utf-8")
    print(f"report: open {REPORTS / 'report.html'}")


if __name__ == "__main__":
    run(main)

"""Make the MLflow store agree with the files: one run for each trained model, with all that is known of it.

    python -m minilm.tracking.sync     models/minilm and the model of each DVC experiment; `make sync`

It adds what a run lacks and changes nothing that is there, so it may be stopped anywhere and repeated. The
report stage does it for the model in the workspace.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from minilm.checkpoint import ModelInfo, read_info
from minilm.errors import InputError, UserError
from minilm.files import MODEL, REPORTS, project_root, read_json, read_table, sha256_of
from minilm.params import load_params
from minilm.tracking import store
from minilm.tracking.run import end_dead_runs, reclaim_run
from minilm.training.fingerprint import fingerprint, training_inputs

from minilm.deploy.pyfunc import log_model  # isort: skip - store sets up MLflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException


def main() -> None:
    """Sync the workspace and the experiments."""
    root = project_root()
    try:
        for name, outcome in sync_all(root):
            print(f"sync: {name}: {outcome}")
    except (UserError, OSError, MlflowException) as error:
        sys.exit(f"error: {store.first_line(error)}")


def sync_all(root: Path) -> Iterator[tuple[str, str]]:
    """Sync the models of the experiments that the store lacks or does not know of, then the workspace's.

    Yields the name of each and what became of it: an experiment that cannot be read does not hold up the
    others.
    """
    from minilm.tracking.lineage import versions  # DVC takes time to import

    client, experiment = store.open_store(root)
    end_dead_runs(client, experiment, root)
    for version in reversed(versions(root)):  # so that a run's newest reports come last
        if not version.experiment or not (model := version.model_info()):
            continue
        run = store.find_run(client, experiment, model)
        if run and "reports_sha256" in run.data.tags and version.experiment in store.experiments_of(run):
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MODEL).parent.mkdir()
            tags = {"dvc_experiment": version.experiment, "git_commit": version.baseline}
            try:
                for name in (MODEL, REPORTS, "params.yaml"):
                    version.files().get(str(name), f"{folder}/{name}", recursive=True)
                yield version.experiment, f"run {sync(client, experiment, root, Path(folder), tags)}"
            except (InputError, OSError) as error:
                yield version.experiment, f"left out: {store.first_line(error)}"
    if (root / MODEL).is_dir():
        yield str(MODEL), f"run {sync(client, experiment, root, root)}"


def sync(
    client: MlflowClient, experiment: str, root: Path, project: Path, tags: Mapping[str, str] | None = None
) -> str:
    """Make the run of a project's model complete, in the store that is open; returns the run's id.

    The main folder is `root`; `project`, which is `root` or an experiment's folder, has models/minilm,
    reports and params.yaml. `tags` is the run's origin; else git and DVC say it, here and now.
    """
    info = read_info(project / MODEL)
    run = store.find_run(client, experiment, info)
    if tags is None:
        end_dead_runs(client, experiment, root)
        tags = store.origin_tags()
        with suppress(FileNotFoundError):  # where only the model was pulled, no training was interrupted
            training = fingerprint(training_inputs(project, info.params, info.environment))
            run = run or reclaim_run(client, experiment, root, training)
    tags = {**tags, **store.data_tags(info.data), **store.model_tags(info)}
    if run is None:
        name = tags.get("dvc_experiment") or f"sync {tags.get('git_commit', '')[:7]}".strip()
        run = client.create_run(experiment, tags={**tags, "restored": "true"}, run_name=name)
    run_id = run.info.run_id
    store.set_tags(client, run_id, {key: value for key, value in tags.items() if key not in run.data.tags})
    if not (run.inputs and run.inputs.dataset_inputs):
        store.log_dataset(client, run_id, info.data)
    if (project / REPORTS / "loss.csv").is_file():
        _log_curves(client, run_id, project / REPORTS)
    _log_results(client, run, project, info)
    log_model(client, run_id, project / MODEL)
    store.note_experiment(client, run, tags.get("dvc_experiment"))  # last: then it has all of the experiment
    if run.info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _log_curves(client: MlflowClient, run_id: str, reports: Path) -> None:
    """The points of loss.csv and the summary in train.json, as far as they are missing."""
    curves, summary = read_table(reports / "loss.csv"), read_json(reports / "train.json")
    store.log_params(client, run_id, {"num_parameters": summary["num_parameters"]})
    steps = [int(step) for step in curves.pop("step")]
    points = [(key, value, step) for key in curves for step, value in zip(steps, curves[key], strict=True)]
    points += [(key, summary[key], 0) for key in ("best_step", "best_val_loss")]
    keys = {key for key, _, _ in points}
    logged = {(key, point.step) for key in keys for point in client.get_metric_history(run_id, key)}
    _log_metrics(client, run_id, [point for point in points if (point[0], point[2]) not in logged])


def _log_results(client: MlflowClient, run: Run, project: Path, info: ModelInfo) -> None:
    """Parameters, metrics and files of the stages; `history/` keeps those of each setting."""
    run_id, reports = run.info.run_id, project / REPORTS
    params = load_params(project / "params.yaml")
    logged = params.report.model_dump() | info.params | store.environment_params(info.environment)
    store.log_params(client, run_id, logged)
    found = [reports / f"{name}.json" for name in ("evaluation", "samples")]
    evaluation, samples = (read_json(file) if file.is_file() else {} for file in found)
    if not evaluation.get("model_sha256") == samples.get("model_sha256") == info.model_sha256:
        return  # the stages have yet to run for this model
    evaluated = {"eval_context": evaluation["eval_context"]}
    sampled = {"prompt": samples["prompt"], **samples["settings"]}
    store.log_params(client, run_id, evaluated | sampled)
    metrics = read_json(reports / "metrics.json")
    if any(run.data.metrics.get(key) != value for key, value in metrics.items()):
        step = len(client.get_metric_history(run_id, "test_loss"))
        _log_metrics(client, run_id, [(key, value, step) for key, value in metrics.items()])
    files = sorted(file for file in reports.iterdir() if not file.name.startswith("."))
    digest = sha256_of("".join(map(sha256_of, files)).encode())
    if run.data.tags.get("reports_sha256") == digest:
        return
    for file in files:
        client.log_artifact(run_id, str(file), "reports")
    kept = (("evaluate", evaluated, "metrics.json"), ("sample", sampled, "samples.txt"))
    for stage, settings, result in kept:
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        folder = f"history/{stage}-{sha256_of(text.encode())[:8]}"
        client.log_text(run_id, text, f"{folder}/settings.json")
        client.log_artifact(run_id, str(reports / result), folder)
    store.set_tags(client, run_id, {"reports_sha256": digest})


def _log_metrics(client: MlflowClient, run_id: str, points: list[tuple[str, float, int]]) -> None:
    """Add points (name, value, step)."""
    now = int(time.time() * 1000)
    client.log_batch(run_id, [Metric(key, value, now, step) for key, value, step in points])


if __name__ == "__main__":
    main()

"""The best models of the MLflow store, by bits per character on the test split.

python -m minilm.tracking.ranking               the ten best on the dataset that was trained on last
python -m minilm.tracking.ranking --champion    and the best becomes `models:/minilm@champion`

Only finished runs of one dataset are ranked, each model once. One that was evaluated with another
eval_context than the best is marked, since more context makes the figure lower.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import pandas

from minilm.errors import InputError, UserError
from minilm.files import project_root
from minilm.params import FIELDS, SampleParams, experiment_command, load_params, text_of
from minilm.tracking import store
from minilm.tracking.lineage import Lineage

import mlflow  # isort: skip - store sets it up
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

METRIC, NAME, ALIAS, WIDTH = "test_bits_per_char", "minilm", "champion", 100
# What cannot change the figure.
_NO_EFFECT = {*SampleParams.model_fields, "launcher", "checkpoint_interval", "eval_context"}


def main() -> None:
    """Read the command line, print the ranking, and move the champion if asked."""
    parser = argparse.ArgumentParser(prog="python -m minilm.tracking.ranking", description=__doc__)
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to print (default 10)")
    parser.add_argument("--data", default="", metavar="SHA", help="beginning of the dataset's SHA-256")
    parser.add_argument("--champion", action="store_true", help="register the best on the champion's dataset")
    arguments = parser.parse_args()
    root = project_root()
    try:
        client, experiment = store.open_store(root, create=False)
        champion = _champion(client) if arguments.champion else None
        data = arguments.data or (champion.data.tags["data_sha256"] if champion else "")
        runs = rank(client, experiment, data)
        print(table(runs, arguments.top), end="\n\n")
        print(
            move_champion(client, runs[0], champion) if arguments.champion else how_to_restore(root, runs[0])
        )
    except (UserError, OSError, MlflowException) as error:
        sys.exit(f"error: {store.first_line(error)}")


def rank(client: MlflowClient, experiment: str, data: str = "") -> list[Run]:
    """The finished runs that have the metric on the dataset whose SHA-256 begins with `data`, the best first.

    Each model has one; empty `data` is that of the newest run. Raises InputError if there is nothing to rank,
    or `data` is ambiguous.
    """
    finished = store.search_runs(client, experiment, "attributes.status = 'FINISHED'")
    tested = [
        run
        for run in finished
        if math.isfinite(run.data.metrics.get(METRIC, math.nan)) and "data_sha256" in run.data.tags
    ]
    datasets = list(dict.fromkeys(run.data.tags["data_sha256"] for run in tested))
    chosen = [dataset for dataset in datasets if dataset.startswith(data)]
    if not chosen or (data and len(chosen) > 1):
        where = f", on the datasets {', '.join(name[:12] for name in datasets)}" if datasets else ""
        raise InputError(
            f"nothing to rank: {len(finished)} finished runs, of which {len(tested)} have {METRIC}{where}"
        )
    same_data = [run for run in tested if run.data.tags["data_sha256"] == chosen[0]]
    models = {run.data.tags.get("model_sha256"): run for run in same_data}
    return sorted(models.values(), key=lambda run: run.data.metrics[METRIC])


def table(runs: list[Run], top: int) -> str:
    """The ranking with the parameters in which the runs differ, as far as the width allows."""
    params = [{key: text_of(value) for key, value in store.run_params(run).items()} for run in runs]
    frame = pandas.DataFrame(params, columns=[key for key in FIELDS if key not in _NO_EFFECT]).fillna("")
    frame = frame.loc[:, frame.nunique() > 1]
    bits = [f"{run.data.metrics[METRIC]:.4f}" + " *"[_context(run) != _context(runs[0])] for run in runs]
    frame.insert(0, "rank", range(1, len(runs) + 1))
    frame.insert(1, "bits/char", bits)
    frame.insert(2, "name", [_name(run) for run in runs])
    lines = [line[:WIDTH].rstrip() for line in frame.head(top).to_string(index=False).splitlines()]
    data = runs[0].data.tags["data_sha256"]
    lines += ["", f"{min(top, len(runs))} of {len(runs)} models on the dataset {data[:12]}"]
    if any(text.endswith("*") for text in bits):
        lines.append("* evaluated with another eval_context than the best, so not strictly comparable")
    return "\n".join(lines)


def how_to_restore(root: Path, run: Run) -> str:
    """The best run, and the command that restores its model or, if its files are gone, trains it again."""
    said = f"The best is {_name(run)}, {run.data.metrics[METRIC]:.4f} bits/char, run {run.info.run_id}."
    if found := Lineage(root, run.info.run_id).versions:
        return f"{said}\nTo restore it:\n  {found[0].restore_command()}"
    now = {key: value for part in load_params(root / "params.yaml") for key, value in part}
    commit = run.data.tags.get("git_commit", "an unknown commit")[:12]
    return (
        f"{said}\nNo experiment and no commit here has its files. To train it again, on its data and with "
        f"the code of {commit}:\n  {experiment_command(store.run_params(run), now)}"
    )


def move_champion(client: MlflowClient, best: Run, champion: Run | None) -> str:
    """Register the best run's model as the champion if it is better; returns what was done."""
    reached = f"{_name(best)}, {best.data.metrics[METRIC]:.4f} bits per character, run {best.info.run_id}"
    same_data = champion and champion.data.tags["data_sha256"] == best.data.tags["data_sha256"]
    if champion and same_data and best.data.metrics[METRIC] >= champion.data.metrics[METRIC]:
        return f"champion: {_name(champion)} stays, {champion.data.metrics[METRIC]:.4f} bits per character"
    models = best.outputs.model_outputs if best.outputs else []
    if not models:
        raise InputError(f"the best run, {best.info.run_id}, has no model yet; `make sync` adds it")
    mlflow.set_tracking_uri(client.tracking_uri)  # where MLflow looks up `models:/...`
    version = mlflow.register_model(f"models:/{models[0].model_id}", NAME)
    client.set_registered_model_alias(NAME, ALIAS, version.version)
    return f"champion: models:/{NAME}@{ALIAS} is now version {version.version}: {reached}"


def _champion(client: MlflowClient) -> Run | None:
    """The run whose model has the alias, if there is one."""
    found = client.search_registered_models(f"name = '{NAME}'")
    versions = [model.aliases[ALIAS] for model in found if ALIAS in model.aliases]
    runs = [client.get_run(str(client.get_model_version(NAME, version).run_id)) for version in versions]
    return next((run for run in runs if METRIC in run.data.metrics), None)


def _name(run: Run) -> str:
    return next(iter(store.experiments_of(run)), run.info.run_name)


def _context(run: Run) -> Any:
    """The eval_context; `auto` is half of block_size, as in minilm.evaluation.scoring."""
    params = store.run_params(run)
    context, half = params.get("eval_context"), params.get("block_size", 0) // 2
    return half if context == "auto" else context


if __name__ == "__main__":
    main()

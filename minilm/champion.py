"""The champion: the best model on a text, under one name in MLflow's model registry.

python -m minilm.champion            the best of all rows of the lab notebook
python -m minilm.champion RUN_ID     that row only

    mlflow.pyfunc.load_model("models:/minilm@champion")
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from minilm.archive import CONFIG, read_config
from minilm.errors import InputError
from minilm.spool import store_uri
from minilm.versions import MODEL

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NAME, ALIAS, METRIC = "minilm", "champion", "test_bits_per_char"


class Champion(NamedTuple):
    """A version of the registered model.

    Attributes:
        version: its number.
        text: digest of the text that it was trained and tested on.
        reached: bits a character of the test split.
    """

    version: str
    text: str
    reached: float

    def __str__(self) -> str:
        return f"version {self.version} ({self.reached:.4f} bits a character)"


def main() -> None:
    """Read the command line, and move the alias if there is something better."""
    parser = argparse.ArgumentParser(
        prog="python -m minilm.champion",
        description="Give the alias `champion` of the registered model `minilm` to the lab notebook's row "
        "with the lowest test_bits_per_char on the champion's text, if it is lower than the champion's.",
        epilog="Where there is no champion yet, the text is that of models/minilm. The store is "
        "$MLFLOW_TRACKING_URI or mlflow.db in $DVC_ROOT or the current folder.",
    )
    parser.add_argument("run_id", nargs="?", help="consider only this row, an MLflow run id")
    parser.add_argument(
        "--new-text",
        action="store_true",
        help="leave the champion's text for that of models/minilm, or of the given row; bits a character of "
        "different texts cannot be compared, so the best row there wins, whatever the old champion reached",
    )
    arguments = parser.parse_args()

    from mlflow.exceptions import MlflowException

    try:
        root = Path(os.environ.get("DVC_ROOT", "."))
        print("champion:", move_champion(root.resolve(), arguments.run_id, arguments.new_text))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except MlflowException as error:
        sys.exit(f"error: MLflow: {str(error).splitlines()[0]}")


def move_champion(root: Path, run_id: str | None = None, new_text: bool = False) -> str:
    """Move the alias if a better row is there; returns what was done and why.

    Args:
        root: the project's main folder, with the local store and models/minilm.
        run_id: of the only row to consider; None for all.
        new_text: leave the champion's text for that of the row, or of models/minilm.

    Raises:
        InputError: the row is of no use, or there is neither a champion nor models/minilm.
        MlflowException: the store cannot be reached.
    """
    from minilm.store import mlflow, open_store

    # MLflow looks up `models:/...` in this store, whatever store the client is of.
    mlflow.set_tracking_uri(store_uri(root))
    client, experiment_id = open_store(root)
    # Two at once could each find a better one than the same old, and the worse of them move the alias last.
    with FileLock(root / "mlflow.db.champion.lock"):
        champion = _champion(client)
        chosen = _row(client, experiment_id, run_id) if run_id else None
        if champion and not new_text:
            text = champion.text
        elif chosen:
            text = chosen.data.tags["data_sha256"]
        else:
            text = read_config(root / MODEL / CONFIG)["data"]["sha256"]
        on_text = f"on the text {text[:12]}"
        if chosen and chosen.data.tags["data_sha256"] != text:
            raise InputError(
                f"run {run_id} is of another text than the champion, {champion}, {on_text}; "
                "they cannot be compared, and --new-text takes the new one all the same"
            )
        best = chosen or next(_rows(client, experiment_id, text), None)
        stays = f"{champion} stays" if champion else "still none"
        if best is None:
            return f"{stays}: no row has {METRIC} and a logged model {on_text}"
        reached = best.data.metrics[METRIC]
        if champion and champion.text == text and not reached < champion.reached:
            return f"{stays}: the best {'' if chosen is None else 'given '}row has {reached:.4f} {on_text}"
        version = _version(client, best)
        client.set_registered_model_alias(NAME, ALIAS, version)
        before = champion or "none"
        return f"moved from {before} to {Champion(version, text, reached)} {on_text}, run {best.info.run_id}"


def _champion(client: "MlflowClient") -> Champion | None:
    """Who has the alias; what its row says today counts, and if that is gone, the tags of the version."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(NAME, ALIAS)
    except MlflowException as error:
        # No registered model of that name; or one that has no such alias.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
    facts: dict[str, Any] = dict(version.tags)
    try:
        if version.run_id:
            row = client.get_run(version.run_id).data
            facts |= row.tags | row.metrics
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    try:
        return Champion(version.version, facts["data_sha256"], float(facts[METRIC]))
    except KeyError as error:
        raise InputError(
            f"version {version.version} of {NAME} has the alias {ALIAS}, but neither its tags nor its row "
            f"has {error}; take the alias away on MLflow's page, and the best row gets it"
        ) from None


def _rows(client: "MlflowClient", experiment_id: str, text: str) -> "Iterator[Run]":
    """The rows of a text that have the metric and a model, the best first."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.data_sha256 = '{text}' and metrics.{METRIC} >= 0",
            order_by=[f"metrics.{METRIC} ASC", "attributes.start_time ASC"],
            page_token=token,
        )
        for run in page:
            if math.isfinite(run.data.metrics[METRIC]) and _model_id(client, run):
                yield run
        if not (token := page.token):
            return


def _row(client: "MlflowClient", experiment_id: str, run_id: str) -> "Run":
    """The row of that id, which must be one that can become champion."""
    run = client.get_run(run_id)
    if run.info.experiment_id != experiment_id:
        raise InputError(f"run {run_id} is not of the experiment {NAME}")
    if not math.isfinite(run.data.metrics.get(METRIC, math.nan)) or "data_sha256" not in run.data.tags:
        raise InputError(f"run {run_id} has no {METRIC}; `dvc repro` tests the model that it trains")
    if not _model_id(client, run):
        raise InputError(f"run {run_id} has no logged model")
    return run


def _model_id(client: "MlflowClient", run: "Run") -> str | None:
    """The id of the row's MLflow model, if it is there and whole."""
    from mlflow.exceptions import MlflowException

    for output in run.outputs.model_outputs if run.outputs else []:
        try:
            if client.get_logged_model(output.model_id).status == "READY":
                return output.model_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # it was deleted
                raise
    return None


def _version(client: "MlflowClient", run: "Run") -> str:
    """The version of the row's model, which is registered if it is not yet."""
    tags = {METRIC: str(run.data.metrics[METRIC]), "run_id": run.info.run_id}
    tags |= {key: value for key, value in run.data.tags.items() if key in ("data_sha256", "model_sha256")}
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME)
    known = client.search_model_versions(f"name = '{NAME}' and run_id = '{run.info.run_id}'")
    if known:
        for key, value in tags.items():
            client.set_model_version_tag(NAME, known[0].version, key, value)
        return known[0].version
    model_id = _model_id(client, run)
    return client.create_model_version(
        NAME, f"models:/{model_id}", run.info.run_id, tags, model_id=model_id
    ).version


if __name__ == "__main__":
    main()

"""The lab notebook: one MLflow run for each trained model, found again by the digest of its weights.

It only reports: what it is given is already in files, and when MLflow cannot be reached, it says so and
the work goes on.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minilm.checkpoint import TOKENIZER, read_card
from minilm.packaging import copy_code, log_model
from minilm.source import Source
from minilm.store import MlflowClient, mlflow, open_store
from minilm.tokenizer import CharTokenizer
from minilm.versions import CODE, git

MODEL_TAG = "model_sha256"


class Notebook:
    """The page of one run; what is written here appears in MLflow at once.

    Args:
        client: of the store that holds the run.
        run_id: of the run; None for a notebook that forgets, when there is no store.
    """

    def __init__(self, client: MlflowClient | None, run_id: str | None):
        self.client, self.run_id = client, run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add points to the curves of these names."""
        now = int(time.time() * 1000)
        points = [mlflow.entities.Metric(key, value, now, step) for key, value in metrics.items()]
        self._write(lambda client, run_id: client.log_batch(run_id, metrics=points))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Note parameters; one that stands there stays, and a new value becomes the tag `latest.KEY`."""

        def write(client: MlflowClient, run_id: str) -> None:
            noted = client.get_run(run_id).data.params
            texts = {key: str(value) for key, value in params.items()}
            new = [mlflow.entities.Param(key, text) for key, text in texts.items() if key not in noted]
            changed = [
                mlflow.entities.RunTag(f"latest.{key}", text)
                for key, text in texts.items()
                if noted.get(key, text) != text
            ]
            client.log_batch(run_id, params=new, tags=changed)

        self._write(write)

    def log_files(self, *paths: str | Path) -> None:
        """Store copies of files under `reports/`."""

        def write(client: MlflowClient, run_id: str) -> None:
            for path in paths:
                client.log_artifact(run_id, str(path), "reports")

        self._write(write)

    def log_model(self, folder: str | Path) -> None:
        """Store the model folder as an MLflow model that serves, and tag the run with its digest."""

        def write(client: MlflowClient, run_id: str) -> None:
            client.set_tag(run_id, MODEL_TAG, read_card(folder).model_sha256)
            with TemporaryDirectory() as code:
                copy_code(Path(code))
                log_model(run_id, Path(folder), Path(code), _known_letter(Path(folder)))

        self._write(write)

    def _write(self, action: Callable[[MlflowClient, str], object]) -> None:
        if self.client is None or self.run_id is None:
            return
        try:
            action(self.client, self.run_id)
        except Exception as error:
            # Whatever goes wrong in a notebook must not cost the training that it tells of.
            _warn(error)
            self.client = self.run_id = None


@contextmanager
def new_run(root: Path, tags: Mapping[str, str]) -> Iterator[Notebook]:
    """A new run for as long as the block lasts; it ends FINISHED, or FAILED if the block raises.

    Args:
        root: the project's main folder, $DVC_ROOT, which holds the store.
        tags: of the run, besides those that say which code and experiment made it.
    """
    origin = _code_and_experiment()
    try:
        _, experiment_id = open_store(root)
        run = mlflow.start_run(
            experiment_id=experiment_id, run_name=origin.get("dvc_experiment"), tags={**origin, **tags}
        )
    except Exception as error:
        _warn(error)
        yield Notebook(None, None)
        return
    with run:
        yield Notebook(MlflowClient(), run.info.run_id)


@contextmanager
def run_of(root: Path, folder: str | Path) -> Iterator[Notebook]:
    """The newest run of the model in `folder`, as it is; or a new one, where the store has none.

    A fresh clone with a pulled model has none: then the model folder tells what made it, and the tag
    `restored` says that the curves are missing.
    """
    card = read_card(folder)
    try:
        client, experiment_id = open_store(root)
        known = client.search_runs(
            [experiment_id],
            f"tags.{MODEL_TAG} = '{card.model_sha256}'",
            order_by=["start_time DESC"],
            max_results=1,
        )
    except Exception as error:
        _warn(error)
        yield Notebook(None, None)
        return
    if known:
        yield Notebook(client, known[0].info.run_id)
        return
    with new_run(root, {"restored": "true", **data_tags(card.data)}) as notebook:
        notebook.log_params(card.params)
        notebook.log_model(folder)
        yield notebook


def data_tags(data: Source) -> dict[str, str]:
    """What a run says of its text."""
    return {
        "data_source": data.origin,
        "data_sha256": data.sha256,
        "is_sample_text": str(data.origin == "sample").lower(),
    }


def _code_and_experiment() -> dict[str, str]:
    """Tags that lead back to the code and the DVC experiment; what is not known is left out."""
    tags = {
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "git_commit": git(Path.cwd(), "rev-parse", "HEAD"),
    }
    # What an experiment changes in params.yaml and dvc.lock is told by the row's params; this is of the code.
    changes = git(Path.cwd(), "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    if changes is not None:
        tags["git_dirty"] = str(bool(changes)).lower()
    if name := tags["dvc_experiment"]:
        tags["mlflow.note.content"] = f"Bring this experiment back into the workspace: `dvc exp apply {name}`"
    return {key: value for key, value in tags.items() if value is not None}


def _known_letter(folder: Path) -> str:
    """A prompt that the model certainly knows."""
    characters = CharTokenizer.load(folder / TOKENIZER).characters
    return next(filter(str.isalpha, characters), characters[0])


def _warn(error: Exception) -> None:
    reason = (str(error).strip() or repr(error)).split("\n")[0]
    print(
        f"WARNING: MLflow could not be written to, the run is not recorded there: {reason}", file=sys.stderr
    )

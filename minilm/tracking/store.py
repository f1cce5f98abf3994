"""The MLflow store: where it is, and how a run of a trained model is found or described in it."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import requests
from filelock import FileLock

from minilm.checkpoint import ModelInfo
from minilm.data.provenance import Source
from minilm.errors import UserError
from minilm.params import parse_values

# These are read when mlflow is imported or sends a request: no telemetry, no lines about tables being made,
# and no minutes of retries, since what is missing is added by the next `make sync`.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag

EXPERIMENT = "minilm"
PROBE_TIMEOUT = 0.7  # seconds in which a server must answer before anything is sent to it
_LONGEST_PARAM = 6000  # MLflow's limit
_NOTE = "To restore this model"  # the beginning of the note that a run gets


def store_uri(root: Path) -> str:
    """The store's address: $MLFLOW_TRACKING_URI, or mlflow.db in the project's main folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def open_store(root: Path, create: bool = True) -> tuple[MlflowClient, str]:
    """A client of the store, and the id of the experiment `minilm` in it.

    `create` makes what is missing; without it the store is only read. Raises UserError if it does not
    answer, is missing and not to be made, MLflow misreads its path, or it is to be written to and its folder
    was moved; MlflowException if the server refuses.
    """
    uri, local = store_uri(root), f"sqlite:///{root / 'mlflow.db'}"
    shown, database = without_password(uri), uri.removeprefix("sqlite:///")
    if uri == local and ("?" in local or unquote(local) != local):
        raise UserError(f"MLflow misreads '?' and '%' in {root}; rename the folder")
    if uri.startswith("http"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=PROBE_TIMEOUT)
        except requests.exceptions.SSLError:
            pass  # it answers; MLflow has its own settings of certificates to trust
        except requests.RequestException as error:
            raise UserError(f"{shown} does not answer ({type(error).__name__})") from None
    # Two processes that make mlflow.db at once destroy it.
    with FileLock(root / "mlflow.db.lock") if uri == local else nullcontext():
        # In a queued experiment the working folder is temporary; the artifacts must outlive it.
        artifacts = (root / "mlruns").as_uri() if uri == local else None
        # The client makes a database that is missing.
        if create or database == uri or Path(database).is_file():
            client = MlflowClient(uri)
            if experiment := client.get_experiment_by_name(EXPERIMENT):
                location = experiment.artifact_location
                # One that was made here names the folder, and MLflow has no way to change it.
                if create and artifacts not in (None, location) and location.endswith("/mlruns"):
                    raise UserError(
                        f"{shown} keeps its artifacts in {location}: the project was "
                        "moved or copied; move it back, or remove mlflow.db and mlruns and run `make sync`"
                    )
                return client, experiment.experiment_id
        if not create:
            raise UserError(f"there is no MLflow store at {shown}; `dvc repro` makes one")
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)


def search_runs(client: MlflowClient, experiment: str, condition: str = "") -> list[Run]:
    """The runs of the experiment that meet MLflow's condition, newest first."""
    return list(client.search_runs([experiment], condition, max_results=50_000))  # the most that it allows


def find_run(client: MlflowClient, experiment: str, model: ModelInfo) -> Run | None:
    """The run of the model: of an equal config.json, which has the weights' digest. Of several the oldest."""
    runs = search_runs(client, experiment, f"tags.model_folder_sha256 = '{model.folder_sha256}'")
    return runs[-1] if runs else None


def model_tags(model: ModelInfo) -> dict[str, str]:
    """The digests of the model's weights, its config.json, and the weights that training started with."""
    digests = {"model_sha256": model.model_sha256, "model_folder_sha256": model.folder_sha256}
    return digests | ({"initial_model_sha256": model.initial_sha256} if model.initial_sha256 else {})


def data_tags(data: Source) -> dict[str, str]:
    """Tags about the dataset."""
    is_sample = str(data.origin == "sample").lower()
    return {"data_source": data.origin, "data_sha256": data.sha256, "is_sample_text": is_sample}


def origin_tags() -> dict[str, str]:
    """Tags that lead back to the code and the DVC experiment; what is unknown is left out."""
    commit = git("rev-parse", "HEAD")
    # What an experiment changes in params.yaml and dvc.lock is in the run's params; this is about the code.
    changes = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "dvc.yaml")
    tags = {
        "dvc_experiment": os.environ.get("DVC_EXP_NAME"),  # which may yet fail
        "dvc_baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        "git_commit": commit,
        "git_dirty": None if changes is None else str(bool(changes)).lower(),
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "PROJECT",
    }
    return {key: value for key, value in tags.items() if value}


def environment_params(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The environment by its names in MLflow; `precision` is a parameter, which may be `auto`."""
    return {"precision_used" if key == "precision" else key: value for key, value in environment.items()}


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters; one that is there stays, and another value becomes the tag `latest.KEY`."""
    texts = {key: str(value)[:_LONGEST_PARAM] for key, value in params.items()}
    known = _latest_params(client.get_run(run_id))
    new = [Param(key, text) for key, text in texts.items() if key not in known]
    changed = [RunTag(f"latest.{key}", text) for key, text in texts.items() if known.get(key, text) != text]
    client.log_batch(run_id, params=new, tags=changed)


def log_dataset(client: MlflowClient, run_id: str, data: Source) -> None:
    """Log the dataset as an input of the run."""
    dataset = Dataset(
        name=data.dataset,
        digest=data.sha256[:32],  # MLflow takes at most 36 characters
        source_type="text",
        source=json.dumps({"origin": data.origin, "sha256": data.sha256}),
        profile=json.dumps({f"{split}_characters": count for split, count in data.characters.items()}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def set_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set several tags in one request."""
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def note_experiment(client: MlflowClient, run: Run, name: str | None) -> None:
    """Note a DVC experiment that made the run's model, with the command that restores it."""
    known = experiments_of(run)
    names = known if name in known or not name else [name, *known]
    tags = {"dvc_experiments": ", ".join(names)}
    if run.data.tags.get("mlflow.note.content", _NOTE).startswith(_NOTE):  # else the user has written one
        tags["mlflow.note.content"] = "\n\n".join(f"{_NOTE}: `dvc exp apply {name}`" for name in names)
    if names:
        set_tags(client, run.info.run_id, tags)


def experiments_of(run: Run) -> list[str]:
    """The names of the DVC experiments that made the run's model, the latest first."""
    return list(filter(None, run.data.tags.get("dvc_experiments", "").split(", ")))


def run_params(run: Run) -> dict[str, Any]:
    """The run's values of the keys of params.yaml, as they were last."""
    return parse_values(_latest_params(run))


def _latest_params(run: Run) -> dict[str, str]:
    tags = run.data.tags.items()
    latest = {key.removeprefix("latest."): value for key, value in tags if key.startswith("latest.")}
    return run.data.params | latest


def git(*arguments: str) -> str | None:
    """What git prints in the current folder, or None if it fails."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    return None if done.returncode else done.stdout.strip()


def without_password(text: str) -> str:
    """The text, with user name and password taken out of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def first_line(error: BaseException) -> str:
    """What went wrong, in one line without passwords."""
    return without_password((str(error).strip() or repr(error)).split("\n")[0])

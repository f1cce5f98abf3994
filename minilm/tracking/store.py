"""MLflow, set up, and the store that holds the rows of the lab notebook."""

import os
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from minilm.spool import store_uri

# These are read when mlflow is imported: no telemetry, no lines about tables being made. A server that does
# not answer is given up after seconds instead of minutes: what it was to be told is kept and told later.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
import mlflow
from mlflow import MlflowClient

__all__ = ["EXPERIMENT", "MlflowClient", "mlflow", "open_store"]
EXPERIMENT = "minilm"
_ABOUT = "One row a trained model; `python -m minilm.lineage RUN_ID` tells where it came from."


def open_store(root: Path, uri: str | None = None) -> tuple[MlflowClient, str]:
    """The store, ready for use, and the id of the experiment `minilm` in it.

    Args:
        root: the project's main folder.
        uri: the store's address, if it is not the one of `minilm.spool.store_uri`.
    """
    uri = uri or store_uri(root)
    # Two processes that make mlflow.db at once destroy it.
    with FileLock(root / "mlflow.db.lock") if uri.startswith("sqlite:") else nullcontext():
        client = MlflowClient(uri)
        if experiment := client.get_experiment_by_name(EXPERIMENT):
            return client, experiment.experiment_id
        # In a queued experiment the working folder is temporary; the artifacts must outlive it.
        is_local = uri == f"sqlite:///{root / 'mlflow.db'}"
        artifacts = (root / "mlruns").as_uri() if is_local else None
        about = {"mlflow.note.content": _ABOUT}
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts, tags=about)

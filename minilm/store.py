"""MLflow, set up, and the store that holds the rows of the lab notebook."""

import os
from pathlib import Path

from filelock import FileLock

# These are read when mlflow is imported: no telemetry, no lines about tables being made. A server that does
# not answer is given up after seconds instead of minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
import mlflow
from mlflow import MlflowClient

__all__ = ["EXPERIMENT", "MlflowClient", "mlflow", "open_store"]
EXPERIMENT = "minilm"


def open_store(root: Path) -> tuple[MlflowClient, str]:
    """The store, ready for use, and the id of the experiment `minilm` in it.

    Args:
        root: the project's main folder, which holds the store unless $MLFLOW_TRACKING_URI names another.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    # Two processes that make mlflow.db at once destroy it.
    with FileLock(root / "mlflow.db.lock"):
        mlflow.set_tracking_uri(uri or f"sqlite:///{root / 'mlflow.db'}")
        client = MlflowClient()
        if experiment := client.get_experiment_by_name(EXPERIMENT):
            return client, experiment.experiment_id
        # In a queued experiment the working folder is temporary; the artifacts must outlive it.
        artifacts = None if uri else (root / "mlruns").as_uri()
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)

"""The live run of a training: its curves in MLflow while it runs.

A store that fails costs the training one warning; `make sync` adds later what is missing.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Self

from filelock import Timeout

from minilm.checkpoint import ModelInfo
from minilm.data.provenance import Source
from minilm.errors import TrainingInterrupted
from minilm.tracking import store
from minilm.training.fingerprint import training_lock

from mlflow import MlflowClient  # isort: skip - store sets up MLflow
from mlflow.entities import Metric, Run


class NullRun:
    """Takes the place of a run where nothing is to be logged: in every process but the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        pass

    def log_report(self, report: Any) -> None:
        """Add a `minilm.training.reports.Report` to the curves."""

    def log_model(self, model: ModelInfo) -> None:
        """Say which model the training gave."""


def turned_off_by_a_failure(method: Callable[..., Any]) -> Callable[..., None]:
    """Let the first failure of a LiveRun's method, with a warning, turn the run off."""

    @wraps(method)
    def guarded(run: "LiveRun", *arguments: Any) -> None:
        try:
            if run.on:
                method(run, *arguments)
        except Exception as error:  # MLflow's, SQLAlchemy's, those of requests
            if run.on:
                run.on = False
                warn(error)

    return guarded


class LiveRun(NullRun):
    """The run of a training in the MLflow store, which ends with the `with` block.

    `root` is the project's main folder, which holds the local store; `training` the fingerprint, by which the
    run of the same training that was interrupted goes on; `params` are those of the stages up to train, and
    the environment.
    """

    on = True  # until the first failure

    @turned_off_by_a_failure
    def __init__(self, root: Path, training: str, data: Source, params: Mapping[str, Any]):
        # Unless a server answers quickly, go on without it.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # failures are reported here, once
        self.client, self.experiment = store.open_store(root)
        self._logged_steps, self._sending = set[int](), ThreadPoolExecutor()
        end_dead_runs(self.client, self.experiment, root)
        tags = store.origin_tags() | store.data_tags(data)
        name = os.environ.get("DVC_EXP_NAME") or f"train {tags.get('git_commit', '')[:7]}".strip()
        if run := reclaim_run(self.client, self.experiment, root, training):
            self.client.update_run(run.info.run_id, status="RUNNING", name=name)
            store.set_tags(self.client, run.info.run_id, tags)
            history = self.client.get_metric_history(run.info.run_id, "val_loss")
            self._logged_steps = {point.step for point in history}
        else:
            tags |= {"training": training, "workspace": workspace(root)}
            run = self.client.create_run(self.experiment, tags=tags, run_name=name)
            store.log_dataset(self.client, run.info.run_id, data)
        self.run_id = run.info.run_id
        store.log_params(self.client, self.run_id, params)

    @turned_off_by_a_failure
    def log_report(self, report: Any) -> None:
        """Send it from a thread; a step that the run has already is left as it is."""
        if report.step not in self._logged_steps:
            now, values = int(time.time() * 1000), report._asdict()
            points = [Metric(key, values[key], now, report.step) for key in values if key != "step"]
            # Not MLflow's own asynchronous logging: its thread sleeps up to a second when the process ends.
            self._sending.submit(self._send, points)

    @turned_off_by_a_failure
    def _send(self, points: list[Metric]) -> None:
        self.client.log_batch(self.run_id, points)

    @turned_off_by_a_failure
    def log_model(self, model: ModelInfo) -> None:
        """Tag the run with the model's digests; delete it if an earlier run is of the same model."""
        earlier = store.find_run(self.client, self.experiment, model)
        if earlier and earlier.info.run_id != self.run_id:
            self.on = False  # first, since a report may be under way to the deleted run
            self.client.delete_run(self.run_id)  # the report stage adds this experiment to the earlier one
        else:
            store.set_tags(self.client, self.run_id, store.model_tags(model))

    @turned_off_by_a_failure
    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        self._sending.shutdown()
        if not self.on:
            return
        status = "FAILED" if error else "FINISHED"
        if isinstance(error, KeyboardInterrupt | TrainingInterrupted):
            status = "KILLED"
        elif error:
            self.client.set_tag(self.run_id, "error", store.first_line(error))
        self.client.set_terminated(self.run_id, status)


def reclaim_run(client: MlflowClient, experiment: str, root: Path, training: str) -> Run | None:
    """The run of a training in this workspace that has no model yet, to go on in.

    It loses the tags of the attempt that did not end: its error and its experiment.
    """
    for run in store.search_runs(client, experiment, f"tags.training = '{training}'"):
        tags = run.data.tags
        if tags.get("workspace") == workspace(root) and "model_sha256" not in tags:
            for key in {"error", "dvc_experiment", "dvc_baseline"} & tags.keys():
                client.delete_tag(run.info.run_id, key)
            return client.get_run(run.info.run_id)
    return None


def end_dead_runs(client: MlflowClient, experiment: str, root: Path) -> None:
    """Set the runs of this workspace to KILLED that are RUNNING, but whose process is gone."""
    for run in store.search_runs(client, experiment, "attributes.status = 'RUNNING'"):
        if run.data.tags.get("workspace") == workspace(root):
            with suppress(Timeout), training_lock(root, run.data.tags["training"]).acquire(blocking=False):
                client.set_terminated(run.info.run_id, "KILLED")


def workspace(root: Path) -> str:
    """A name for a project's folder that no other folder or machine has."""
    return f"{socket.gethostname()}:{root}"


def warn(error: Exception) -> None:
    """Say that the store lacks something from here on, and how to add it."""
    reason = store.first_line(error)
    print(f"WARNING: MLflow: {reason}; nothing more is logged, `make sync` adds it later", file=sys.stderr)

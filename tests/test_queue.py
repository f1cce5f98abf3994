"""Queued and temporary experiments by several workers at once."""

import csv
import time
from pathlib import Path

import mlflow
import pytest


@pytest.fixture(scope="module")
def queued(make_project):
    """Two queued experiments by two workers, from a state without mlflow.db, then a temporary one."""
    project = make_project()
    project.dvc("repro")
    project.commit()
    for file in project.folder.glob("mlflow.db*"):
        file.unlink()
    project.dvc("exp", "run", "--queue", "-S", "embed_dim=8,32")
    project.dvc("queue", "start", "--jobs", "2")
    deadline = time.monotonic() + 240
    # The workers are DVC's own background processes; asking is the only way to know of their end.
    while (status := project.dvc("queue", "status")).count("Success") < 2:
        assert "Failed" not in status, status
        assert time.monotonic() < deadline, status
        time.sleep(1)
    project.dvc("exp", "run", "--temp", "-S", "embed_dim=24")
    return project


def test_all_are_in_the_main_workspaces_notebook(queued):
    runs = {run.data.params["embed_dim"]: run for run in queued.mlflow_runs()}
    assert runs.keys() == {"8", "32", "24"}
    client = queued.client()
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert {"test_loss", "val_loss"} <= run.data.metrics.keys()
        folder = client.download_artifacts(run.info.run_id, "reports")
        assert {"samples.txt", "loss.csv", "metrics.json"} <= {file.name for file in Path(folder).iterdir()}
        (model,) = client.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
        )
        mlflow.pyfunc.load_model(model.artifact_location)


def test_dvc_shows_them_with_their_metrics(queued):
    rows = list(csv.DictReader(queued.dvc("exp", "show", "--csv").splitlines()))
    names = {run.data.tags["dvc_experiment"] for run in queued.mlflow_runs()}
    found = {row["Experiment"]: row for row in rows if row["Experiment"] in names}
    assert {row["embed_dim"] for row in found.values()} == {"8", "32", "24"}
    assert len({row["test_loss"] for row in found.values()}) == 3

"""Queued and temporary experiments by several workers at once, and what is said of them afterwards."""

import csv
import re
from pathlib import Path

import mlflow
import pytest

from conftest import stages_run
from minilm.files import sha256_of
from minilm.tracking import store
from minilm.tracking.lineage import Lineage
from minilm.tracking.ranking import how_to_restore, rank


@pytest.fixture(scope="module")
def queued(project):
    """Three queued experiments by two workers, from a state without mlflow.db, then a temporary one.

    One of the three fails: its number of heads does not divide the width.
    """
    for file in project.folder.glob("mlflow.db*"):
        file.unlink()
    project.dvc("exp", "run", "--queue", "--name", "broken", "-S", "num_heads=3")
    project.dvc("exp", "run", "--queue", "-S", "embed_dim=8,32")
    status = project.work_off_queue(jobs=2)
    assert len(re.findall("Success", status)) == 2
    assert re.search(r"broken .* Failed\b", status)
    project.dvc("exp", "run", "--temp", "-S", "embed_dim=24")
    return project


def test_all_are_in_the_main_workspaces_store(queued):
    runs = {run.data.params["embed_dim"]: run for run in queued.mlflow_runs() if run.info.status != "FAILED"}
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
    found = {row["Experiment"]: row for row in rows if row["Experiment"] in names - {"broken"}}
    assert {row["embed_dim"] for row in found.values()} == {"8", "32", "24"}
    assert len({row["test_loss"] for row in found.values()}) == 3
    assert [row["State"] for row in rows if row["Experiment"] == "broken"] == ["Failed"]


def test_what_failed_says_why(queued):
    logs = queued.dvc("queue", "logs", "broken")
    assert "error: params.yaml: embed_dim: 16 is not divisible by num_heads, 3" in logs


def test_best_is_the_lowest_and_comes_back(queued, monkeypatch):
    said = queued.run("python", "-m", "minilm.tracking.ranking").stdout
    finished = [run for run in queued.mlflow_runs() if run.info.status == "FINISHED"]
    finished.sort(key=lambda run: run.data.metrics["test_bits_per_char"])
    ranked = re.findall(r"(?m)^ +\d  +(\d+\.\d{4}) +(\S+) +(\d+)$", said)
    assert ranked == [
        (
            f"{run.data.metrics['test_bits_per_char']:.4f}",
            run.data.tags["dvc_experiment"],
            run.data.params["embed_dim"],
        )
        for run in finished
    ]
    wanted = finished[0].data.tags["model_sha256"]
    command = re.search(r"To restore it:\n  dvc (.*)", said)[1].split()
    assert command == ["exp", "apply", ranked[0][1]]
    weights = queued.folder / "models" / "minilm" / "model.safetensors"
    assert sha256_of(weights) != wanted
    queued.dvc(*command)
    assert sha256_of(weights) == wanted

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{queued.folder / 'mlflow.db'}")
    monkeypatch.chdir(queued.folder)
    page = Lineage(queued.folder, str(weights.parent)).describe()
    assert page["dvc"]["to restore it"] == f"dvc exp apply {ranked[0][1]}"
    assert page["mlflow"]["runs"].keys() == {finished[0].info.run_id}
    assert "BUNDLED SAMPLE TEXT" in page["data"]["WARNING"]
    assert page["data"]["now"] == "data/raw holds this dataset"
    assert re.fullmatch(r"\w{12} \S+ x", page["code"]["commit"])
    assert "changes" not in page["code"]

    # Without the experiment, the same settings give the same model.
    queued._git("checkout", "--quiet", "--force", "HEAD")
    queued.dvc("exp", "remove", ranked[0][1])
    said = how_to_restore(queued.folder, rank(*store.open_store(queued.folder))[0])
    command = re.search(r"To train it again, .*:\n  dvc (.*)", said)[1].split()
    assert command == ["exp", "run", "-S", f"embed_dim={ranked[0][2]}"]
    assert "train" not in stages_run(queued.dvc(*command))
    assert sha256_of(weights) == wanted

"""One row a model, always true: whatever runs again, is killed, fails or comes from a cache."""

import copy
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from conftest import TINY, stages_run
from mlflow.entities import ViewType

from minilm.files import SPLITS, sha256_of
from minilm.spool import pages

MODEL = Path("models/minilm")
DIGESTS = {"model_sha256": MODEL / "model.safetensors", "model_folder_sha256": MODEL / "config.json"}
KEPT = {"evaluate": "metrics.json", "sample": "samples.txt"}
# A training of some seconds, whose state is saved all the time.
UNTIL = "step  60/300", "step 160/300"
LONG = {"steps": "300", "eval_interval": "20", "checkpoint_interval": "0.001", "learning_rate": "0.01"}


@pytest.fixture
def lab(fresh):
    """The project; whatever a test does there, its notebook must be in order afterwards."""
    yield fresh
    runs = fresh.mlflow_runs()
    models = [tuple(map(run.data.tags.get, DIGESTS)) for run in runs if "model_sha256" in run.data.tags]
    assert len(models) == len(set(models)), "two rows of a model"
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}
    assert not pages(fresh.folder)


@pytest.fixture
def clone(project, tmp_path):
    """The project as one has it who cloned it and pulled its outputs: without a notebook."""
    clone = copy.copy(project)
    clone.folder = tmp_path / "my clone"
    project.run("git", "clone", "--quiet", ".", str(clone.folder))
    shutil.copytree(project.folder / ".dvc" / "cache", clone.folder / ".dvc" / "cache")
    clone.dvc("checkout", "--quiet")
    return clone


def stage(project, name: str, ok: bool = True) -> str:
    return project.run(sys.executable, "-m", f"stages.{name}", ok=ok).stdout


def ids(project) -> set[str]:
    return {run.info.run_id for run in project.mlflow_runs()}


def row(project, run_id: str):
    return project.client().get_run(run_id)


def row_of_model(project):
    """The one row of the model in the workspace."""
    tags = {tag: sha256_of(project.folder / file) for tag, file in DIGESTS.items()}
    (run,) = [run for run in project.mlflow_runs() if run.data.tags | tags == run.data.tags]
    return run


def curve(project, run_id: str, key: str) -> list[tuple[int, float]]:
    """All points, so that one that is there twice is seen."""
    return sorted((point.step, point.value) for point in project.client().get_metric_history(run_id, key))


def scores(project, run_id: str) -> list[dict[str, float]]:
    """The test metrics, as often as they were noted."""
    curves = {key: curve(project, run_id, key) for key in json.loads(project.read("reports/metrics.json"))}
    for points in curves.values():
        assert [step for step, _ in points] == list(range(len(points)))
    values = [[value for _, value in points] for points in curves.values()]
    return [dict(zip(curves, noted, strict=True)) for noted in zip(*values, strict=True)]


def files(project, run_id: str, folder: str) -> dict[str, bytes]:
    """The row's files in a folder, by their names there."""
    found = Path(project.client().download_artifacts(run_id, "")) / folder
    return {str(file.relative_to(found)): file.read_bytes() for file in found.rglob("*") if file.is_file()}


def history(project, run_id: str, name: str) -> dict[str, str]:
    """What a stage found, by the settings that it had, as JSON."""
    found = {path: text.decode() for path, text in files(project, run_id, "history").items()}
    folders = {path.partition("/")[0] for path in found if path.startswith(f"{name}-")}
    settings = {folder: json.dumps(json.loads(found[f"{folder}/settings.json"])) for folder in folders}
    assert len(set(settings.values())) == len(folders), "two folders of a setting"
    return {text: found[f"{folder}/{KEPT[name]}"] for folder, text in settings.items()}


def assert_trained(project, run_id: str) -> None:
    """The row is that of the model here, finished, with its text, whole curves and the model itself."""
    run = row_of_model(project)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert not run.data.tags.keys() & {"error", "restored"}
    lines = list(csv.DictReader(project.read("reports/loss.csv").splitlines()))
    for key in ("train_loss", "val_loss", "learning_rate"):
        assert curve(project, run_id, key) == [(int(line["step"]), float(line[key])) for line in lines]
    interval, last = (int(run.data.params[key]) for key in ("eval_interval", "steps"))
    steps = list(range(interval, last + 1, interval))
    assert [step for step, _ in curve(project, run_id, "tokens_per_second")] == steps
    models = project.client().search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert [model.status for model in models] == ["READY"]
    (given,) = run.inputs.dataset_inputs
    sha256 = json.loads(project.read("data/raw/source.json"))["sha256"]
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    assert (given.dataset.name, given.dataset.digest) == ("wikitext-2", sha256[:32])
    assert json.loads(given.dataset.source) == {"origin": "sample", "sha256": sha256}
    characters = {f"{split}_characters": len(project.read(f"data/raw/{split}.txt")) for split in SPLITS}
    assert json.loads(given.dataset.profile) == characters


def assert_whole(project, run_id: str) -> None:
    """The row has besides all that the stages found in the model, as it is in the workspace."""
    assert_trained(project, run_id)
    noted = scores(project, run_id)
    assert noted[-1] == json.loads(project.read("reports/metrics.json"))
    assert all(one != other for one, other in pairwise(noted))
    reports = (project.folder / "reports").glob("[!.]*")
    assert files(project, run_id, "reports") == {path.name: path.read_bytes() for path in reports}
    for name, file in KEPT.items():
        assert project.read(f"reports/{file}") in history(project, run_id, name).values()


def test_results_of_each_setting_are_kept_in_the_models_row(lab):
    def results() -> dict[str, str]:
        return {name: lab.read(f"reports/{file}") for name, file in KEPT.items()}

    before, run_id = ids(lab), row_of_model(lab).info.run_id
    noted, first = scores(lab, run_id), results()
    kept = {name: history(lab, run_id, name) for name in KEPT}
    assert kept["evaluate"]['{"eval_context": "auto"}'] == first["evaluate"]

    lab.set(eval_context="3", temperature="1.7")
    assert stages_run(lab.dvc("repro")) == {"evaluate", "sample"}
    assert ids(lab) == before
    second = results()
    assert all(second[name] != first[name] for name in KEPT)
    assert scores(lab, run_id) == [*noted, json.loads(second["evaluate"])]
    data = row(lab, run_id).data
    assert (data.params["eval_context"], data.tags["latest.eval_context"]) == ("auto", "3")
    assert (data.params["temperature"], data.tags["latest.temperature"]) == ("0.8", "1.7")
    both = {name: history(lab, run_id, name) for name in KEPT}
    assert both["evaluate"] == kept["evaluate"] | {'{"eval_context": 3}': second["evaluate"]}
    (new,) = both["sample"].keys() - kept["sample"].keys()
    assert json.loads(new)["temperature"] == 1.7
    assert both["sample"] == kept["sample"] | {new: second["sample"]}
    assert files(lab, run_id, "reports")["samples.txt"].decode() == second["sample"]

    # Back again; run without DVC, which would take both from its cache.
    lab.set(eval_context="auto", temperature="0.8")
    stage(lab, "evaluate")
    stage(lab, "sample")
    assert ids(lab) == before
    assert scores(lab, run_id) == [*noted, *(json.loads(now["evaluate"]) for now in (second, first))]
    assert row(lab, run_id).data.tags["latest.eval_context"] == "auto"
    assert {name: history(lab, run_id, name) for name in KEPT} == both
    assert_whole(lab, run_id)


def test_model_from_the_run_cache_has_its_row_already(lab):
    run_id = row_of_model(lab).info.run_id
    lab.set(seed="11")
    assert stages_run(lab.dvc("repro", "train")) == {"train"}
    other, before = row_of_model(lab).info.run_id, ids(lab)
    lab.set(seed="1337", eval_context="5")
    output = lab.dvc("repro")
    assert "Stage 'train' is cached" in output
    assert stages_run(output) == {"evaluate"}
    assert_whole(lab, run_id)
    assert row(lab, run_id).data.tags["latest.eval_context"] == "5"
    assert "test_loss" not in row(lab, other).data.metrics

    shutil.rmtree(lab.folder / MODEL)
    for file in (lab.folder / "reports").glob("[!.]*"):
        file.unlink()
    assert stages_run(lab.dvc("repro")) == set()
    assert_whole(lab, run_id)
    assert ids(lab) == before


@pytest.mark.parametrize("what", [("--single-item", "train"), ()], ids=["train", "all"])
def test_forced_training_of_the_same_model_becomes_part_of_its_row(lab, what):
    before, run = ids(lab), row_of_model(lab)
    if what:  # as when it was killed between its model and its end
        lab.client().set_terminated(run.info.run_id, "KILLED")
    lab.dvc("repro", "--force", *what)
    assert ids(lab) == before
    assert_whole(lab, run.info.run_id)
    # While it trained, it did have a row of its own.
    own = lab.client().search_runs([run.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)[0]
    assert own.data.tags["training"] == run.data.tags["training"]
    assert own.info.start_time > run.info.start_time


def test_forced_training_after_the_store_was_lost_notes_the_standing_results(clone):
    assert stages_run(clone.dvc("repro", "--force", "--single-item", "train")) == {"train"}
    (run_id,) = ids(clone)
    assert_whole(clone, run_id)


def test_pulled_model_gets_a_row_that_its_training_completes(clone):
    stage(clone, "evaluate")
    run = row_of_model(clone)
    run_id = run.info.run_id
    assert (run.info.status, run.data.tags["restored"]) == ("FINISHED", "true")
    of_sample = {key: TINY[key] for key in ("num_samples", "max_new_tokens")}
    assert run.data.params | of_sample | TINY == run.data.params | of_sample
    assert (run.data.params["eval_context"], run.data.params["threads"]) == ("auto", "1")
    assert run.data.metrics == json.loads(clone.read("reports/metrics.json"))

    stage(clone, "sample")
    assert TINY.items() <= row(clone, run_id).data.params.items()
    assert files(clone, run_id, "reports")["samples.txt"].decode() == clone.read("reports/samples.txt")
    clone.dvc("repro", "--force", "--single-item", "train")
    assert ids(clone) == {run_id}
    assert_whole(clone, run_id)


@contextmanager
def training(project, until: str):
    """The stage, which has printed `until`, and the process that delivers; both end with the block."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "stages.train"],
        cwd=project.folder,
        env=project.env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a signal to its group does not reach the tests
    )
    try:
        assert any(until in line for line in process.stdout)
        children = psutil.Process(process.pid).children()
        (courier,) = [child for child in children if "minilm.deliver" in child.cmdline()]
        yield process, courier
        process.communicate(timeout=60)
        courier.wait(60)
    finally:
        process.kill()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT and SIGTERM"])
def test_stopped_training_goes_on_in_its_row(lab, how):
    signals = [signal.SIGKILL] * 2 if how == "SIGKILL" else [signal.SIGINT, signal.SIGTERM]
    lab.set(seed=f"{12 + len(how)}", **LONG)
    before = ids(lab)
    for number, until in zip(signals, UNTIL, strict=True):
        with training(lab, until) as (process, _):
            os.killpg(process.pid, number)  # as a terminal does
        (run_id,) = ids(lab) - before
        run = row(lab, run_id)
        assert run.info.status == "KILLED"
        assert not run.data.tags.keys() & {"error", "model_sha256"}
        assert curve(lab, run_id, "val_loss")
    assert "going on from the state after step" in stage(lab, "train")
    assert ids(lab) == before | {run_id}
    assert_trained(lab, run_id)


def test_row_whose_processes_were_all_killed_is_closed_by_whoever_comes_next(lab):
    lab.set(seed="13", **LONG)
    before, found = ids(lab), set()
    for until, next_one in zip(UNTIL, ("minilm.deliver", "stages.sample"), strict=True):
        with training(lab, until) as (process, courier):
            process.send_signal(signal.SIGSTOP)  # so that it does not end before its row is there
            deadline = time.monotonic() + 60
            while not (new := ids(lab) - before) or row(lab, *new).info.status != "RUNNING":
                assert time.monotonic() < deadline
                time.sleep(0.1)  # a store tells nobody of a new row
            courier.kill()
            process.kill()
        assert row(lab, *new).info.status == "RUNNING"
        lab.run(sys.executable, "-m", next_one)
        found |= {(run_id, row(lab, run_id).info.status) for run_id in ids(lab) - before}
    ((run_id, status),) = found
    assert status == "KILLED"
    assert "going on from the state after step" in stage(lab, "train")
    assert ids(lab) == before | {run_id}
    assert_trained(lab, run_id)


def test_failure_is_told_until_the_same_training_succeeds(lab):
    before = ids(lab)
    lab.set(seed="15", steps="60", learning_rate="10", weight_decay="10")
    (error,) = re.findall("(?m)^error: (.*)", stage(lab, "train", ok=False))
    assert "try a lower learning_rate" in error
    (diverged,) = ids(lab) - before
    run = row(lab, diverged)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", error)
    assert "model_sha256" not in run.data.tags
    assert curve(lab, diverged, "val_loss")[0][0] == 2  # what there was of a curve
    said = lab.run(sys.executable, "-m", "minilm.tracking.lineage", diverged).stdout
    assert f"status FAILED error {error} store" in " ".join(said.split())

    lab.set(steps="4", learning_rate="0.01", weight_decay="0.1")
    models, elsewhere = lab.folder / "models", lab.folder / "elsewhere"
    models.rename(elsewhere)
    models.write_text("a file in the way")
    (error,) = re.findall("(?m)^error: (.*)", stage(lab, "train", ok=False))
    (failed,) = ids(lab) - before - {diverged}
    run = row(lab, failed)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", error)
    models.unlink()
    elsewhere.rename(models)
    stage(lab, "train")
    assert ids(lab) == before | {diverged, failed}
    assert_trained(lab, failed)
    assert row(lab, diverged).info.status == "FAILED"


def test_experiments_that_make_a_model_are_named_in_its_row(lab):
    before = ids(lab)
    lab.dvc("exp", "run", "--name", "other", "-S", "seed=17")
    (run_id,) = ids(lab) - before
    assert_whole(lab, run_id)
    run = row(lab, run_id)
    assert run.info.run_name == "other"
    assert (run.data.tags["dvc_experiment"], run.data.tags["dvc_experiments"]) == ("other", "other")
    assert re.findall("`dvc exp apply (.+)`", run.data.tags["mlflow.note.content"]) == ["other"]

    assert stages_run(lab.dvc("exp", "run", "--name", "warm", "-S", "temperature=1.2")) == {"sample"}
    run = row(lab, run_id)
    assert run.info.run_name == "other"
    assert (run.data.tags["dvc_experiment"], run.data.tags["dvc_experiments"]) == ("other", "other, warm")
    assert re.findall("`dvc exp apply (.+)`", run.data.tags["mlflow.note.content"]) == ["warm", "other"]
    said = lab.run(sys.executable, "-m", "minilm.tracking.lineage", run_id).stdout
    assert re.search(r"bring it back +dvc exp apply (other|warm)\n", said)
    assert re.search(rf"characters +{len(lab.read('data/raw/train.txt')):,} train, ", said)

    lab.client().set_tag(run_id, "mlflow.note.content", "The best one!")
    lab.dvc("exp", "run", "--name", "hot", "-S", "temperature=1.5")
    tags = row(lab, run_id).data.tags
    assert (tags["dvc_experiments"], tags["mlflow.note.content"]) == ("other, warm, hot", "The best one!")
    assert ids(lab) == before | {run_id}

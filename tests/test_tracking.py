"""One run for each trained model, whatever runs again, is killed, fails or comes from a cache."""

import copy
import csv
import json
import re
import shutil
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from mlflow.entities import ViewType

from conftest import TINY, stages_run
from minilm.files import SPLITS, sha256_of

MODEL = Path("models/minilm")
DIGESTS = {"model_sha256": MODEL / "model.safetensors", "model_folder_sha256": MODEL / "config.json"}
KEPT = {"evaluate": "metrics.json", "sample": "samples.txt"}
# A training of some seconds, with a checkpoint after almost every step.
UNTIL = "step  60/300", "step 160/300"
LONG = {"steps": "300", "eval_interval": "20", "checkpoint_interval": "0.001", "learning_rate": "0.01"}


@pytest.fixture
def lab(fresh):
    """The project; whatever a test does there, its store must be in order afterwards."""
    yield fresh
    runs = fresh.mlflow_runs()
    models = [tuple(map(run.data.tags.get, DIGESTS)) for run in runs if "model_sha256" in run.data.tags]
    assert len(models) == len(set(models)), "two runs of a model"
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}


@pytest.fixture
def clone(project, tmp_path):
    """The project as cloned, with its outputs pulled: without an MLflow store."""
    clone = copy.copy(project)
    clone.folder = tmp_path / "my clone"
    project.run("git", "clone", "--quiet", ".", str(clone.folder))
    shutil.copytree(project.folder / ".dvc" / "cache", clone.folder / ".dvc" / "cache")
    clone.dvc("checkout", "--quiet")
    return clone


def stage(project, name: str, **options) -> str:
    return project.run("python", "-m", f"stages.{name}", **options).stdout


def sync(project, **options) -> str:
    return project.run("python", "-m", "minilm.tracking.sync", **options).stdout


def ids(project) -> set[str]:
    return {run.info.run_id for run in project.mlflow_runs()}


def run_of_id(project, run_id: str):
    return project.client().get_run(run_id)


def run_of_model(project):
    """The one run of the model in the workspace."""
    tags = {tag: sha256_of(project.folder / file) for tag, file in DIGESTS.items()}
    (run,) = [run for run in project.mlflow_runs() if run.data.tags | tags == run.data.tags]
    return run


def curve(project, run_id: str, key: str) -> list[tuple[int, float]]:
    """All points, so that one that is there twice is seen."""
    return sorted((point.step, point.value) for point in project.client().get_metric_history(run_id, key))


def scores(project, run_id: str) -> list[dict[str, float]]:
    """The test metrics, as often as they were logged."""
    curves = {key: curve(project, run_id, key) for key in json.loads(project.read("reports/metrics.json"))}
    for points in curves.values():
        assert [step for step, _ in points] == list(range(len(points)))
    values = [[value for _, value in points] for points in curves.values()]
    return [dict(zip(curves, noted, strict=True)) for noted in zip(*values, strict=True)]


def files(project, run_id: str, folder: str) -> dict[str, bytes]:
    """The run's files in a folder, by their names there."""
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
    """The run is that of the model here, finished, with its dataset and whole curves."""
    run = run_of_model(project)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert not run.data.tags.keys() & {"error", "restored"}
    lines = list(csv.DictReader(project.read("reports/loss.csv").splitlines()))
    for key in ("train_loss", "val_loss", "learning_rate", "grad_norm"):
        assert curve(project, run_id, key) == [(int(line["step"]), float(line[key])) for line in lines]
    interval, last = (int(run.data.params[key]) for key in ("eval_interval", "steps"))
    steps = list(range(interval, last + 1, interval))
    assert [step for step, _ in curve(project, run_id, "tokens_per_second")] == steps
    (given,) = run.inputs.dataset_inputs
    sha256 = json.loads(project.read("data/raw/source.json"))["sha256"]
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    assert (given.dataset.name, given.dataset.digest) == ("wikitext-2", sha256[:32])
    assert json.loads(given.dataset.source) == {"origin": "sample", "sha256": sha256}
    characters = {f"{split}_characters": len(project.read(f"data/raw/{split}.txt")) for split in SPLITS}
    assert json.loads(given.dataset.profile) == characters


def assert_whole(project, run_id: str) -> None:
    """The run has besides the model itself and all that the stages found in it, as it is in the workspace."""
    assert_trained(project, run_id)
    experiment = run_of_id(project, run_id).info.experiment_id
    models = project.client().search_logged_models([experiment], f"source_run_id = '{run_id}'")
    assert [model.status for model in models] == ["READY"]
    logged = scores(project, run_id)
    assert logged[-1] == json.loads(project.read("reports/metrics.json"))
    assert all(one != other for one, other in pairwise(logged))
    reports = (project.folder / "reports").glob("[!.]*")
    assert files(project, run_id, "reports") == {path.name: path.read_bytes() for path in reports}
    for name, file in KEPT.items():
        assert project.read(f"reports/{file}") in history(project, run_id, name).values()


def test_results_of_each_setting_are_kept_in_the_models_run(lab):
    def results() -> dict[str, str]:
        return {name: lab.read(f"reports/{file}") for name, file in KEPT.items()}

    before, run_id = ids(lab), run_of_model(lab).info.run_id
    logged, first = scores(lab, run_id), results()
    kept = {name: history(lab, run_id, name) for name in KEPT}
    assert kept["evaluate"]['{"eval_context": "auto"}'] == first["evaluate"]

    lab.set(eval_context="3", temperature="1.7")
    assert stages_run(lab.dvc("repro")) == {"evaluate", "sample", "report"}
    assert ids(lab) == before
    second = results()
    assert all(second[name] != first[name] for name in KEPT)
    assert scores(lab, run_id) == [*logged, json.loads(second["evaluate"])]
    data = run_of_id(lab, run_id).data
    assert (data.params["eval_context"], data.tags["latest.eval_context"]) == ("auto", "3")
    assert (data.params["temperature"], data.tags["latest.temperature"]) == ("0.8", "1.7")
    both = {name: history(lab, run_id, name) for name in KEPT}
    assert both["evaluate"] == kept["evaluate"] | {'{"eval_context": 3}': second["evaluate"]}
    (new,) = both["sample"].keys() - kept["sample"].keys()
    assert json.loads(new)["temperature"] == 1.7
    assert both["sample"] == kept["sample"] | {new: second["sample"]}

    # Back again; run without DVC, which would take it from its cache.
    lab.set(eval_context="auto", temperature="0.8")
    for name in ("evaluate", "sample", "report"):
        stage(lab, name)
    assert ids(lab) == before
    assert scores(lab, run_id) == [*logged, *(json.loads(now["evaluate"]) for now in (second, first))]
    assert run_of_id(lab, run_id).data.tags["latest.eval_context"] == "auto"
    assert {name: history(lab, run_id, name) for name in KEPT} == both
    assert_whole(lab, run_id)


def test_a_model_from_the_run_cache_has_its_run_already(lab):
    run_id = run_of_model(lab).info.run_id
    lab.set(seed="11")
    assert stages_run(lab.dvc("repro", "train")) == {"train"}
    other, before = run_of_model(lab).info.run_id, ids(lab)
    lab.set(seed="1337", eval_context="5")
    output = lab.dvc("repro")
    assert "Stage 'train' is cached" in output
    assert stages_run(output) == {"evaluate", "report"}
    assert_whole(lab, run_id)
    assert run_of_id(lab, run_id).data.tags["latest.eval_context"] == "5"
    assert "test_loss" not in run_of_id(lab, other).data.metrics

    shutil.rmtree(lab.folder / MODEL)
    for file in (lab.folder / "reports").glob("[!.]*"):
        file.unlink()
    assert stages_run(lab.dvc("repro")) == set()
    assert_whole(lab, run_id)
    assert ids(lab) == before


@pytest.mark.parametrize("what", [("--single-item", "train"), ()], ids=["train", "all"])
def test_forced_training_of_the_same_model_leaves_its_run_alone(lab, what):
    before, run = ids(lab), run_of_model(lab)
    lab.dvc("repro", "--force", *what)
    assert ids(lab) == before
    assert_trained(lab, run.info.run_id)
    if what:  # what stands in the reports need not be what was found last
        sync(lab)
    assert_whole(lab, run.info.run_id)
    # While it trained, it did have a run of its own.
    own = lab.client().search_runs([run.info.experiment_id], run_view_type=ViewType.DELETED_ONLY)[0]
    assert own.data.tags["training"] == run.data.tags["training"]
    assert own.info.start_time > run.info.start_time


def test_a_pulled_model_gets_a_run_by_sync_which_changes_nothing_when_repeated(clone):
    assert re.fullmatch(r"sync: models/minilm: run \w{32}\n", sync(clone))
    run = run_of_model(clone)
    run_id = run.info.run_id
    assert (run.info.status, run.data.tags["restored"]) == ("FINISHED", "true")
    assert run.data.params | TINY == run.data.params
    assert (run.data.params["eval_context"], run.data.params["threads"]) == ("auto", "1")
    clone.client().delete_tag(run_id, "restored")  # as assert_whole wants it
    points = clone.client().get_metric_history(run_id, "val_loss")
    for point in points:  # the only curve that no file has
        clone.client().log_metric(run_id, "tokens_per_second", 1, step=point.step)
    assert_whole(clone, run_id)

    before = run_of_id(clone, run_id).to_dictionary()
    sync(clone)
    assert run_of_id(clone, run_id).to_dictionary() == before
    assert_whole(clone, run_id)
    clone.dvc("repro", "--force", "--single-item", "train")
    assert ids(clone) == {run_id}
    assert_whole(clone, run_id)


def interrupt(project, until: str, number: int) -> None:
    """Start the training in a group of processes, which gets the signal when it has printed `until`."""
    process = subprocess.Popen(
        ["python", "-u", "-m", "stages.train"],
        cwd=project.folder,
        env=project.env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        assert any(until in line for line in process.stdout)
        process.send_signal(number)
        process.communicate(timeout=60)
    finally:
        process.kill()


def test_an_interrupted_training_goes_on_in_its_run(lab):
    lab.set(seed="12", **LONG)
    before, found = ids(lab), set()
    for number, until in (
        (signal.SIGINT, "step  60/300"),
        (signal.SIGTERM, "step 120/300"),
        (signal.SIGKILL, "step 180/300"),
    ):
        interrupt(lab, until, number)
        (run_id,) = ids(lab) - before
        if number == signal.SIGKILL:
            assert run_of_id(lab, run_id).info.status == "RUNNING"
            sync(lab)  # or whatever comes next
        run = run_of_id(lab, run_id)
        assert run.info.status == "KILLED"
        assert not run.data.tags.keys() & {"error", "model_sha256"}
        assert curve(lab, run_id, "val_loss")
        found.add(run_id)
    assert len(found) == 1
    assert "resuming from the checkpoint after step" in stage(lab, "train")
    assert ids(lab) == before | found
    assert_trained(lab, run_id)


def test_a_training_that_diverges_is_told(lab):
    before = ids(lab)
    lab.set(seed="15", steps="60", learning_rate="10", weight_decay="10")
    (error,) = re.findall("(?m)^error: (.*)", stage(lab, "train", ok=False))
    assert "try a lower learning_rate" in error
    (diverged,) = ids(lab) - before
    run = run_of_id(lab, diverged)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", error)
    assert "model_sha256" not in run.data.tags
    assert curve(lab, diverged, "val_loss")[0][0] == 2  # what there was of a curve
    said = lab.run("python", "-m", "minilm.tracking.lineage", diverged).stdout
    assert f"FAILED errors: - '{error}'" in " ".join(said.split())


@pytest.mark.parametrize(
    ("seed", "store"), [("16", {}), ("19", {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})]
)
def test_the_run_of_a_failure_becomes_that_of_the_experiment_that_succeeds(lab, seed, store):
    before = ids(lab)
    lab.set(seed=seed)
    models, elsewhere = lab.folder / "models", lab.folder / "elsewhere"
    models.rename(elsewhere)
    models.write_text("a file in the way")
    said = stage(lab, "train", ok=False, DVC_EXP_NAME="first")
    (failed,) = ids(lab) - before
    run = run_of_id(lab, failed)
    assert (run.info.status, run.data.tags["dvc_experiment"]) == ("FAILED", "first")
    assert [run.data.tags["error"]] == re.findall("(?m)^error: (.*)", said)
    models.unlink()
    elsewhere.rename(models)
    stage(lab, "train", DVC_EXP_NAME="second", **store)
    # As if the second had failed after its training; adds what the store did not get.
    sync(lab, DVC_EXP_NAME="third")
    assert ids(lab) == before | {failed}
    run = run_of_model(lab)
    assert (run.info.run_id, run.info.status) == (failed, "FINISHED")
    assert run.data.tags["dvc_experiments"] == "third"
    assert "error" not in run.data.tags
    if not store:
        assert_trained(lab, failed)


def test_experiments_that_make_a_model_are_named_in_its_run(lab):
    before = ids(lab)
    lab.dvc("exp", "run", "--name", "other", "-S", "seed=17")
    (run_id,) = ids(lab) - before
    assert_whole(lab, run_id)
    run = run_of_id(lab, run_id)
    assert run.info.run_name == "other"
    assert (run.data.tags["dvc_experiment"], run.data.tags["dvc_experiments"]) == ("other", "other")
    assert re.findall("`dvc exp apply (.+)`", run.data.tags["mlflow.note.content"]) == ["other"]

    assert stages_run(lab.dvc("exp", "run", "--name", "warm", "-S", "temperature=1.2")) == {
        "sample",
        "report",
    }
    run = run_of_id(lab, run_id)
    assert run.info.run_name == "other"
    assert (run.data.tags["dvc_experiment"], run.data.tags["dvc_experiments"]) == ("other", "warm, other")
    assert re.findall("`dvc exp apply (.+)`", run.data.tags["mlflow.note.content"]) == ["warm", "other"]
    assert ids(lab) == before | {run_id}

    # The way back, from each name of it; and what sync adds where the store is lost.
    for name in ("other", run_id, run.data.tags["model_sha256"][:12], "models/minilm"):
        said = lab.run("python", "-m", "minilm.tracking.lineage", name).stdout
        assert re.search(r"to restore it: dvc exp apply (other|warm)\n", said)
        assert re.search(rf"characters:\n +train: {len(lab.read('data/raw/train.txt'))}\n", said)
        assert run_id in said
    # A note of the user's stays; an experiment whose parameters cannot be read holds up no other.
    lab.client().set_tag(run_id, "mlflow.note.content", "The best one!")
    lab.dvc("exp", "run", "--name", "hot", "-S", "temperature=1.5")
    tags = run_of_id(lab, run_id).data.tags
    assert (tags["dvc_experiments"], tags["mlflow.note.content"]) == ("hot, warm, other", "The best one!")
    lab.dvc("exp", "run", "--name", "odd", "-S", "seed=18", "train")
    (lab.folder / "params.yaml").write_text(lab.read("params.yaml") + "unknown: 1\n")
    lab.dvc("exp", "save", "--force", "--name", "odd")
    for name in ("params.yaml", "dvc.lock"):
        lab._git("checkout", "--quiet", "HEAD", name)
    lab.dvc("exp", "apply", "hot")
    for file in lab.folder.glob("mlflow.db*"):
        file.rename(file.with_suffix(f"{file.suffix}.away"))
    params = lab.read("params.yaml")
    (lab.folder / "params.yaml").write_text(params + "unknown: 1\n")  # holds up the workspace alone
    said = sync(lab, ok=False)
    assert re.search(r"sync: odd: left out: .*unknown: no such parameter", said)
    assert re.findall(r"sync: (\w+): run", said) == ["other", "warm", "hot"]
    (lab.folder / "params.yaml").write_text(params)
    assert re.search(r"sync: models/minilm: run \w{32}\n", sync(lab))
    run = run_of_model(lab)
    assert set(run.data.tags["dvc_experiments"].split(", ")) == {"hot", "warm", "other"}
    kept = history(lab, run.info.run_id, "sample")
    assert {json.loads(settings)["temperature"] for settings in kept} == {0.8, 1.2, 1.5}
    samples = files(lab, run.info.run_id, "reports")["samples.txt"].decode()
    assert samples == lab.read("reports/samples.txt")  # those of the workspace, where hot is
    for file in lab.folder.glob("mlflow.db*.away"):
        file.rename(file.with_suffix(""))

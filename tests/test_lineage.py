"""Whatever is known of a model leads to all else that is known, and what cannot be found is said."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from conftest import ROOT
from helpers.lab import ENVIRONMENT, TEXT_SHA256, Lab
from minilm.errors import InputError
from minilm.files import sha256_of
from minilm.tracking.lineage import Lineage, main

FRESH_PYTHON = sys.executable


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_model, python):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(sys, "executable", str(python))
        lab = Lab(tmp_path_factory.mktemp("lab") / "my project")
        lab.build(tiny_model)
    return lab


@pytest.fixture
def lab(built, tmp_path, monkeypatch, python):
    """A copy of the project, to do with as one likes; DVC is started by the preloaded interpreter."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "executable", str(python))
    copy = Lab(shutil.copytree(built.root, tmp_path / "my project", symlinks=True))
    copy.plain, copy.wider = built.plain, built.wider
    monkeypatch.chdir(copy.root)
    return copy


def words(text: str) -> str:
    return " ".join(text.split())


def test_each_name_leads_to_the_same_page(lab):
    lab.dvc("exp", "apply", "wider")
    sha256 = sha256_of(lab.folder / "model.safetensors")
    pages = {lab.text(name) for name in (lab.folder, lab.wider, "wider", sha256[:8])}
    (text,) = pages
    page = yaml.safe_load(text)
    head = lab.git("rev-parse", "HEAD")
    assert page["model"] == {"sha256": sha256, "size": "7 parameters", "environment": ENVIRONMENT}
    assert page["parameters"].items() >= {"learning_rate": 0.02}.items()
    assert page["data"]["sha256"] == TEXT_SHA256
    assert page["data"]["characters"] == {"train": 180, "validation": 11, "test": 14}
    assert page["data"]["WARNING"] == "the BUNDLED SAMPLE TEXT replaces wikitext-2"
    assert page["data"]["now"] == "data/raw holds this dataset"
    assert page["code"]["commit"].startswith(head[:12])
    assert page["code"]["commit"].endswith("A model")
    assert "UNCOMMITTED" in page["code"]["changes"]
    assert page["dvc"]["experiments"] == ["wider"]
    assert page["dvc"]["to restore it"] == "dvc exp apply wider"
    assert page["mlflow"]["runs"].keys() == {lab.wider}
    assert page["metrics"]["test_bits_per_char"] == 4.25
    assert "missing" not in page
    assert "embed_dim" not in text
    assert "embed_dim: 128" in lab.text("wider", all_params=True)
    assert sha256 not in lab.text(lab.plain)
    # The commands that the page gives do what they say.
    difference = page["code"]["seen by"]
    assert "+# the code, changed" in lab.run("sh", "-c", difference)


def test_the_commands_restore_the_model(lab):
    weights = sha256_of(lab.folder / "model.safetensors")
    shutil.rmtree(lab.folder)
    assert "to restore it: dvc checkout" in words(lab.text(lab.plain))
    lab.dvc("exp", "apply", "wider")
    lab.git("commit", "--quiet", "--all", "--message", "Another model")
    (command,) = re.findall(r"to restore it: (.*)", lab.text(lab.plain))
    assert command == f"git checkout {lab.git('rev-parse', 'HEAD~')[:10]} && dvc checkout"
    lab.run("sh", "-c", command.replace("dvc", f"'{sys.executable}' -m dvc"))
    assert sha256_of(lab.folder / "model.safetensors") == weights
    assert "to restore it: dvc exp apply wider" in words(lab.text(lab.wider))
    lab.dvc("exp", "remove", "wider")
    assert "experiment wider in this repository" in words(lab.text(lab.wider))


def test_without_a_store_git_and_dvc_tell(lab, monkeypatch):
    for file in lab.root.glob("mlflow.db*"):
        file.unlink()
    text = words(lab.text("wider"))
    assert "there is no MLflow store at" in text
    assert "learning_rate: 0.02" in text
    assert "test_bits_per_char: 4.25" in text
    assert f"commit: {lab.git('rev-parse', 'HEAD')[:12]}" in text
    assert "only an MLflow run or an experiment names the commit" in words(lab.text(lab.folder))
    with pytest.raises(InputError, match=r"^0{32}: no such model; .* \(there is no MLflow store at "):
        lab.text("0" * 32)
    assert not list(lab.root.glob("mlflow.db"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    text = words(lab.text(lab.folder))
    assert "http://127.0.0.1:9 does not answer" in text
    assert "secret" not in text


def test_without_dvcs_cache(lab):
    shutil.rmtree(lab.root / ".dvc" / "cache")
    text = words(lab.text("wider"))
    assert "its files are neither in models/minilm nor in DVC's cache" in text
    assert "experiment wider in this repository, or its model in DVC's cache" in text
    assert "learning_rate: 0.02" in text
    assert lab.wider in text
    assert "size: 7 parameters" in text


def test_damaged_and_changed_folders(lab):
    weights, config = lab.folder / "model.safetensors", lab.folder / "config.json"
    content, text = weights.read_bytes(), config.read_text()
    for file in (weights, config):  # DVC may have linked them
        file.unlink()
    config.write_text(text)
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"model.safetensors is damaged or of another model"):
        lab.text(lab.folder)
    weights.write_bytes(content)
    config.write_text(text.replace("0.01", "0.03"))
    said = words(lab.text(lab.folder))
    assert "an MLflow run of this model; `make sync` adds one" in said
    assert "a dvc.lock in the workspace, in experiments or in commits that names this model" in said


def test_other_data_and_another_repository(lab):
    (lab.root / "data" / "raw" / "train.txt").write_text("new")
    lab.client().set_tag(lab.wider, "git_commit", "12" * 20)
    lab.client().set_tag(lab.wider, "latest.eval_context", "0")
    text = words(lab.text("wider"))
    assert "data/raw holds another one now" in text
    assert "in this repository; `git fetch` may bring it" in text
    assert "eval_context: 0" in text
    (lab.root / "data" / "raw" / "train.txt").unlink()
    assert "a dataset in data/raw to compare with" in words(lab.text("wider"))


def test_the_run_of_a_training_that_failed(lab):
    tags = {"error": "the loss is not finite", "dvc_experiment": "steep"}
    failed = lab.add_run(None, tags, status="FAILED")
    for name in (failed, "steep"):
        text = words(lab.text(name))
        assert "none: the training did not end" in text
        assert "FAILED errors: - the loss is not finite" in text
        assert "test metrics; `dvc repro` evaluates the model" in text


def test_a_prefix_of_two_models(lab):
    lab.client().set_tag(lab.plain, "model_sha256", "ab" * 4 + "0" * 56)
    lab.client().set_tag(lab.wider, "model_sha256", "ab" * 4 + "1" * 56)
    with pytest.raises(InputError, match="there are several such models: abababab"):
        Lineage(lab.root, "ab" * 4)
    assert Lineage(lab.root, "ab" * 4 + "1").runs[0].info.run_id == lab.wider


def test_the_command_needs_no_torch(lab):
    code = "import sys; from minilm.tracking.lineage import main; main(); assert 'torch' not in sys.modules"
    env = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(lab.root)}
    settings = {"cwd": lab.root.parent, "text": True, "capture_output": True, "env": env}
    done = subprocess.run([FRESH_PYTHON, "-c", code, "wider"], **settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert lab.wider in done.stdout


def test_the_command_tells_mistakes_in_one_line(lab, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(lab.root))
    monkeypatch.chdir(lab.root.parent)
    monkeypatch.setattr(sys, "argv", ["lineage", "it's gone"])
    with pytest.raises(SystemExit, match=r"^error: it's gone: no such model; tried as [^\n]*$"):
        main()

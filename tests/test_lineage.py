"""Whatever one knows of a model leads to all else that is known, and what cannot be found is said."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from lab import DEFAULTS, MADE_WITH, TEXT_SHA256, TEXTS, Lab
from minilm.tracking.lineage import main

from minilm.checkpoint import load
from minilm.errors import InputError
from minilm.files import sha256_of
from minilm.lineage_text import text_of


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        lab = Lab(tmp_path_factory.mktemp("lab") / "my project")
        lab.build(tiny_model)
    return lab


@pytest.fixture
def lab(built, tmp_path, monkeypatch):
    """A copy of the project, to do with as one likes."""
    # MLflow sets this variable for its children; known to monkeypatch, it is gone after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    copy = Lab(shutil.copytree(built.root, tmp_path / "my project", symlinks=True))
    copy.plain, copy.wider = built.plain, built.wider
    monkeypatch.chdir(copy.root)
    return copy


def test_each_name_leads_to_the_same(lab):
    lab.dvc("exp", "apply", "wider")
    sha256 = sha256_of(lab.folder / "model.safetensors")
    lineages = {name: lab.find(name) for name in (lab.folder, lab.wider, "wider", sha256, sha256[:8])}
    for lineage in lineages.values():
        assert lineage.model.weights == sha256
        assert lineage.model.folder == lab.folder
        assert lineage.num_parameters == load(lab.folder)[0].num_parameters
        assert lineage.params == DEFAULTS | {"learning_rate": 0.02}
        assert lineage.made_with == MADE_WITH
        assert lineage.data.sha256 == TEXT_SHA256
        assert lineage.data.characters == {split: len(text) for split, text in TEXTS.items()}
        assert lineage.data_now
        assert lineage.code.commit == lab.git("rev-parse", "HEAD")
        assert (lineage.code.subject, lineage.code.dirty) == ("A model", True)
        assert lineage.experiments == ["wider"]
        assert lineage.versions[0].command == "dvc exp apply wider"
        assert [row.info.run_id for row in lineage.rows] == [lab.wider]
        assert lineage.metrics == {"test_bits_per_char": 4.25}
        assert lineage.missing == {}
    assert lab.find(lab.plain).model.weights != sha256


def test_text_says_it_all_within_its_width(lab):
    text = lab.text("wider")
    for words in (
        "learning_rate=0.02",
        "BUNDLED SAMPLE TEXT stands in for wikitext-2",
        "data/raw holds this very text",
        "A model",
        "UNCOMMITTED",
        "dvc exp apply wider",
        lab.wider,
        "FINISHED",
        "4.25 bits",
        "eval_context=auto",
    ):
        assert words in text
    assert "embed_dim" not in text
    assert "embed_dim=128" in text_of(lab.find("wider"), all_params=True)
    # Only a path of this machine may be longer.
    assert all(len(line) <= 100 for line in text.splitlines() if str(lab.root.parent) not in line)
    # The commands that the text gives do what they say.
    (difference,) = re.findall("git diff .*", text)
    assert "+# the code, changed" in lab.run("sh", "-c", difference)


def test_commands_bring_the_model_back(lab):
    lineage = lab.find(lab.plain)
    shutil.rmtree(lab.folder)
    assert lab.find(lab.plain).versions[0].command == "dvc checkout"
    lab.dvc("exp", "apply", "wider")
    lab.git("commit", "--quiet", "--all", "--message", "Another model")
    commands = {name: lab.find(name).versions[0].command for name in (lab.plain, "wider")}
    assert commands == {
        lab.plain: f"git checkout {lab.git('rev-parse', 'HEAD~')[:10]} && dvc checkout",
        "wider": "dvc exp apply wider",
    }
    lab.run("sh", "-c", commands[lab.plain].replace("dvc", f"'{sys.executable}' -m dvc"))
    assert sha256_of(lab.folder / "model.safetensors") == lineage.model.weights
    lab.git(
        "update-ref", "-d", *lab.git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/wider").split()
    )
    found = lab.find(lab.wider)
    assert found.versions[0].command.startswith("git checkout")
    assert "experiment wider is not in this repository" in text_of(found)


def test_name_of_two_experiments_is_not_enough_for_dvc(lab):
    (lab.root / "more").write_text("")
    lab.git("add", "more")
    lab.git("commit", "--quiet", "--message", "Another baseline")
    lab.change("learning_rate", "0.5")
    lab.dvc("commit", "--force", "--quiet")
    lab.dvc("exp", "save", "--name", "wider")
    lab.git("checkout", "--quiet", "--force", "HEAD~")
    commits = {version.commit for version in lab.find(lab.wider).versions if version.experiment}
    (commit,) = commits
    lab.dvc("exp", "apply", commit[:10])
    assert lab.find(lab.wider).versions[0].command == f"dvc exp apply {commit[:10]}"
    assert sha256_of(lab.folder / "model.safetensors") == lab.find(lab.wider).model.weights


def test_without_a_notebook_git_and_dvc_tell(lab):
    for file in lab.root.glob("mlflow.db*"):
        file.unlink()
    lineage = lab.find("wider")
    assert "no notebook here" in lineage.missing["MLflow"][0]
    assert lineage.params == DEFAULTS | {"learning_rate": 0.02}  # those of the other stages by dvc.lock
    assert lineage.metrics == {"test_bits_per_char": 4.25}
    assert lineage.metrics_from == "DVC, by experiment wider"
    assert (lineage.code.commit, lineage.code.dirty) == (lab.git("rev-parse", "HEAD"), True)
    assert lab.find(lineage.model.weights[:10]).experiments == ["wider"]
    plain = lab.find(lab.folder)
    assert "only a row of the notebook or an experiment names the commit" in plain.missing["Code"][0]
    with pytest.raises(InputError, match=r"^0{32}: found nothing .* \(no notebook here: "):
        lab.find("0" * 32)
    assert not list(lab.root.glob("mlflow.db*"))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:///missing.db"])
def test_store_that_cannot_be_reached(lab, uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (reason,) = lab.find(lab.folder).missing["MLflow"]
    assert re.search("127.0.0.1:9 cannot be read: |missing.db does not exist$", reason)
    assert not Path("missing.db").exists()


def test_password_in_the_stores_address_is_not_shown(lab, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    text = lab.text(lab.folder)
    assert "http://127.0.0.1:9 cannot be read" in text
    assert "secret" not in text


def test_without_dvcs_cache(lab):
    shutil.rmtree(lab.root / ".dvc" / "cache")
    lineage = lab.find("wider")
    assert lineage.missing["Model"] == ["its files are neither in models/minilm nor in DVC's cache"]
    assert lineage.missing["DVC"] == [
        "DVC's cache lacks its files; `dvc pull` gets them if a remote has them"
    ]
    # The notebook knows the weights' digest, and only the cache could say whether the experiment has these.
    assert (
        "experiment wider is here, but its model is not in DVC's cache" in lab.find(lab.wider).missing["DVC"]
    )
    assert [row.info.run_id for row in lineage.rows] == [lab.wider]
    assert lineage.params == DEFAULTS | {"learning_rate": 0.02}
    assert lineage.made_with == MADE_WITH
    assert lineage.num_parameters == 7
    assert lineage.data.sha256 == TEXT_SHA256
    # The folder is whole, and dvc.lock names it.
    assert lab.find(lab.folder).versions[0].commit is None


def test_damaged_and_changed_folders(lab):
    weights = lab.folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:-1] + b"x")
    lineage = lab.find(lab.folder)
    assert "model.safetensors is damaged or of another model" in lineage.missing["Model"][0]
    assert [row.info.run_id for row in lineage.rows] == [lab.plain]
    weights.unlink()
    assert lab.find(lab.folder).missing["Model"] == ["model.safetensors is missing"]
    weights.write_bytes(content)
    config = lab.folder / "config.json"
    text = config.read_text()
    config.unlink()
    config.write_text(text.replace("0.01", "0.03"))
    changed = lab.find(lab.folder)
    assert changed.rows == []
    assert f"run {lab.plain} has the same weights, but another config.json" in changed.missing["MLflow"]
    assert "names this model" in changed.missing["DVC"][0]
    config.write_text("{}")
    with pytest.raises(InputError, match=r"config\.json: damaged"):
        lab.find(lab.folder)


def test_another_text_and_another_repository(lab):
    (lab.root / "data" / "raw" / "train.txt").write_text("new")
    (lab.root / "data" / "raw" / "validation.txt").write_text("new")
    client = lab.client()
    client.set_tag(lab.wider, "git_commit", "12" * 20)
    lineage = lab.find("wider")
    assert "data/raw holds another text now" in lineage.missing["Data"][0]
    assert "this repository has no such commit" in lineage.missing["Code"][0]
    (lab.root / "data" / "raw" / "train.txt").unlink()
    assert "no text to compare with" in lab.find("wider").missing["Data"][0]


def test_what_changed_after_training(lab):
    lab.client().set_tag(lab.wider, "latest.eval_context", "0")
    lab.client().set_tag(lab.wider, "latest.learning_rate", "0.02")
    lineage = lab.find("wider")
    assert (lineage.params["eval_context"], lineage.first["eval_context"]) == (0, "auto")
    assert "eval_context=0 (first auto)" in text_of(lineage)
    assert re.search(r"test_\* with +eval_context=0\n", text_of(lineage))


def test_several_rows_of_a_model(lab):
    restored = lab.row(lab.folder, {"restored": "true"})
    assert [row.info.run_id for row in lab.find(lab.folder).rows] == [restored, lab.plain]
    asked = lab.find(lab.plain)
    assert [row.info.run_id for row in asked.rows] == [lab.plain, restored]
    assert restored in text_of(asked)


def test_row_of_a_training_that_failed(lab):
    failed = lab.row(None, {"error": "the loss is not finite", "dvc_experiment": "steep"}, status="FAILED")
    for name in (failed, "steep"):
        text = lab.text(name)
        assert "its training did not end: it is FAILED" in text
        assert "the loss is not finite" in text
        assert "experiment steep is not in this repository" in text
        assert "no test metrics" in text


def test_prefix_of_two_models(lab):
    client = lab.client()
    client.set_tag(lab.plain, "model_sha256", "ab" * 4 + "0" * 56)
    client.set_tag(lab.wider, "model_sha256", "ab" * 4 + "1" * 56)
    with pytest.raises(InputError, match="the SHA-256 of several models begins so: abababab00000000, abab"):
        lab.find("ab" * 4)
    assert lab.find("ab" * 4 + "1").rows[0].info.run_id == lab.wider


def test_command_needs_no_torch_and_tells_mistakes_in_one_line(lab, monkeypatch):
    code = "import sys; from minilm.tracking.lineage import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "wider"],
        cwd=lab.root.parent,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(lab.root)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert lab.wider in done.stdout
    monkeypatch.setattr(sys, "argv", ["lineage", "it's gone"])
    with pytest.raises(SystemExit, match=r"^error: it's gone: found nothing of that name; tried as .*$"):
        main()

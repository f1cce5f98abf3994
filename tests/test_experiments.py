"""Experiments in a clone with tiny parameters: by DVC, by the command line, on one's own text."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

import main
from conftest import ROOT, stages_run
from minilm.checkpoint import read_info
from minilm.errors import InputError
from minilm.params import STAGES, load_params
from stages import download

ALL = set(STAGES)


def test_override_reruns_what_depends_on_it(fresh):
    output = fresh.dvc("exp", "run", "--name", "wider", "-S", "embed_dim=32")
    assert stages_run(output) == {"train", "evaluate", "sample", "report"}
    run = fresh.mlflow_runs()[0]
    assert run.data.params["embed_dim"] == "32"
    assert run.data.tags["dvc_experiment"] == "wider"
    assert run.data.tags["git_dirty"] == "false"
    assert run.data.tags["dvc_baseline"] == fresh._git("rev-parse", "HEAD").strip()
    assert "dvc exp apply wider" in run.data.tags["mlflow.note.content"]
    assert stages_run(fresh.dvc("exp", "run", "-S", "temperature=1.0")) == {"sample", "report"}
    assert fresh.mlflow_runs()[0].data.tags["latest.temperature"] == "1.0"


def test_own_text_and_its_change(fresh, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("All work and no play. " * 40)
    assert stages_run(fresh.dvc("exp", "run", "--name", "book", "-S", f"dataset={book}")) == ALL
    assert fresh.read("data/raw/train.txt").startswith("All work")
    # The experiment's commit holds the link to the text, not the text.
    (ref,) = fresh._git("for-each-ref", "--format=%(refname)", "refs/exps/*/*/book").split()
    assert fresh._git("ls-tree", ref, "data/local_text").startswith("120000 blob")
    assert stages_run(fresh.dvc("repro")) == set()
    book.write_text("Only play. " * 80)
    assert stages_run(fresh.dvc("repro", "encode")) == {"download", "encode"}
    # Back to an earlier content under another name: nothing old may come from a cache.
    other = tmp_path / "other.txt"
    other.write_text("All work and no play. " * 40)
    fresh.dvc("exp", "run", "-S", f"dataset={other}", "download")
    assert fresh.read("data/raw/train.txt").startswith("All work")
    fresh.dvc("exp", "run", "-S", f"dataset={book}", "download")
    assert fresh.read("data/raw/train.txt").startswith("Only play")


@pytest.mark.parametrize(
    ("name", "is_relative"),
    [
        ("../books/a b.txt", False),
        ("{tmp}/books", False),
        ("~/books/Bücher.txt", False),
        ("link.txt", False),
        ("untracked.txt", False),
        ("tracked.txt", True),
        ("./folder", True),
        ("folder with more", False),
    ],
)
def test_each_way_to_name_a_text_leads_to_it_in_every_checkout(tmp_path, monkeypatch, name, is_relative):
    main, temporary, text = (
        tmp_path / "project",
        tmp_path / "project" / ".dvc" / "tmp" / "exps" / "x",
        "Words. ",
    )
    (tmp_path / "books").mkdir()
    for folder in ("data", "folder", "folder with more"):
        (main / folder).mkdir(parents=True)
    for file in (
        "../books/a b.txt",
        "../books/Bücher.txt",
        "tracked.txt",
        "folder/a.txt",
        "folder with more/a.txt",
    ):
        (main / file).write_text(text)
    (main / "link.txt").symlink_to("../books/a b.txt")
    (main / ".gitignore").write_text(".dvc\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", main]
    for command in (["init"], ["add", "--all"], ["commit", "--message", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    for file in ("untracked.txt", "folder with more/b.txt"):
        (main / file).write_text(text)
    subprocess.run(["git", "clone", main, temporary], check=True, capture_output=True)
    (temporary / "data").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DVC_ROOT", str(main))
    for folder in (main, temporary):
        monkeypatch.chdir(folder)
        path = download.locate(name.format(tmp=tmp_path))
        download.point_to(path)
        link = Path("data/local_text")
        assert link.resolve() == path
        assert link.readlink().is_absolute() != is_relative
        assert any(file.read_text() == text for file in (path, *path.glob("*.txt")) if file.is_file())
        assert path.is_relative_to(folder) or not is_relative


def test_the_command_line_takes_a_path_as_the_caller_sees_it(tmp_path, monkeypatch):
    (tmp_path / "my book.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("my book.txt", "~/my book.txt", "../" + tmp_path.name + "/my book.txt"):
        assert main.as_seen_from_root(name) == str(tmp_path / "my book.txt")
    monkeypatch.chdir(ROOT / "tests")
    assert main.as_seen_from_root("../LICENSE") == "LICENSE"
    assert main.as_seen_from_root("../models") == "models"
    assert main.as_seen_from_root("missing.txt") == "missing.txt"
    assert main.as_seen_from_root("wikitext-2") == "wikitext-2"
    assert main.as_seen_from_root("~nobody-here/book.txt") == "~nobody-here/book.txt"
    assert not download.locate("~nobody-here/book.txt").exists()


def test_where_links_are_refused_it_says_so(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "local_text.unfinished").mkdir()  # os.symlink fails as it does without links
    with pytest.raises(InputError, match="must be a symbolic link, which this file system refuses"):
        download.point_to(tmp_path)


def test_a_sweep_over_own_texts_in_the_queue(fresh, tmp_path):
    (fresh.folder / "my book.txt").write_text("All work and no play. " * 40)
    (fresh.folder.parent / "other.txt").write_text("Only play. " * 80)
    fresh.dvc("exp", "run", "--queue", "-S", "dataset='my book.txt',../other.txt", "encode")
    assert fresh.work_off_queue(jobs=2).count("Success") == 2
    refs = fresh._git("for-each-ref", "--sort=-creatordate", "--format=%(refname)", "refs/exps/*/*/*").split()
    found = [
        (
            yaml.safe_load(fresh._git("show", f"{ref}:params.yaml"))["dataset"],
            yaml.safe_load(fresh._git("show", f"{ref}:dvc.lock"))["stages"]["download"]["outs"][1]["size"],
        )
        for ref in refs[:2]
    ]
    assert {name for name, _ in found} == {"my book.txt", "../other.txt"}
    assert len(dict(map(reversed, found))) == 2, "both experiments have the same text"
    # Another time in a temporary folder: the text is found there too, and the same.
    output = fresh.dvc("exp", "run", "--temp", "-S", "dataset=../other.txt", "encode")
    assert stages_run(output) <= {"download"}


def test_folder_of_texts_notices_a_new_file(fresh, tmp_path):
    (tmp_path / "a.txt").write_text("All work and no play. " * 40)
    fresh.set(dataset=str(tmp_path))
    fresh.dvc("repro", "download")
    assert stages_run(fresh.dvc("repro", "download")) == set()
    (tmp_path / "b.txt").write_text("More.\n" * 40)
    assert stages_run(fresh.dvc("repro", "download")) == {"download"}


def test_command_line_trains_an_experiment_by_a_recipe_and_changes_to_it(fresh):
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"(?m)^ {4}python main.py (--train --recipe modern)$", readme)[1].split()
    output = fresh.main(*command, "--seconds", "1", "--warmup_steps", "300",
                        "--compile", "false", "--embed_dim", "32",
                        "--seed", "5", "--prompt", "A, 'b' = ${c} ")  # fmt: skip
    assert stages_run(output) == {"train", "evaluate", "sample", "report"}
    modern = yaml.safe_load((ROOT / "recipes/modern.yaml").read_text())
    written = load_params(fresh.folder / "params.yaml").train
    assert written.optimizer == modern["optimizer"]
    assert written.embed_dim == 32
    assert written.warmup_steps == min(300, written.steps // 2)
    assert f"has steps {written.steps} and warmup_steps {written.warmup_steps};" in output
    assert f"step {written.steps}/{written.steps}" in " ".join(output.split())
    assert fresh.mlflow_runs()[0].data.params["seed"] == "5"
    assert "prompt: \"A, 'b' = ${c} \"" in fresh.read("reports/samples.txt")
    assert "# of weights, batches and dropout" in fresh.read("params.yaml")
    refused = fresh.main("--train", "--recipe", "old", ok=False)
    assert "invalid choice: 'old'" in refused
    assert "'classic', 'lesson', 'modern', 'shakespeare', 'shakespeare-cpu', 'shakespeare-small'" in refused


def test_readmes_commands_run_as_they_stand_there(fresh):
    lines = [line[4:] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("    ")]
    repro, experiment, generate = (
        next(shlex.split(line, comments=True) for line in lines if line.startswith(start))
        for start in ("dvc repro", "dvc exp run", "python main.py --generate")
    )
    assert stages_run(fresh.dvc(*repro[1:])) == set()
    output = fresh.dvc(*experiment[1:])
    assert stages_run(output) == {"train", "evaluate", "sample", "report"}
    assert read_info(fresh.folder / "models" / "minilm").config.embed_dim == 256
    assert "\nThe quick brown fox" in fresh.main(*generate[2:])


def test_a_trained_model_is_trained_further(fresh, tmp_path):
    model, settings = fresh.folder / "models" / "minilm", ("-S", "init_from=models/minilm", "-S", "steps=3")
    first, val_loss = read_info(model), json.loads(fresh.read("reports/train.json"))["val_loss"]
    output = fresh.dvc("exp", "run", *settings, "-S", "learning_rate=1e-9", "-S", "eval_interval=1")
    assert stages_run(output) == ALL
    assert json.loads(fresh.read("reports/train.json"))["val_loss"] == pytest.approx(val_loss, abs=1e-5)
    second = read_info(model)
    assert second.initial_sha256 == first.model_sha256 != second.model_sha256
    assert fresh.mlflow_runs()[0].data.tags["initial_model_sha256"] == first.model_sha256
    assert (
        f"trained further from: {first.model_sha256}"
        in fresh.run("python", "-m", "minilm.tracking.lineage", "models/minilm").stdout
    )
    assert stages_run(fresh.dvc("repro")) == set()
    # In a temporary folder, on another text, which is encoded with the model's vocabulary.
    (tmp_path / "book.txt").write_text("The quick brown fox. \u2603" * 40)
    output = fresh.dvc("exp", "run", "--temp", *settings, "-S", f"dataset={tmp_path / 'book.txt'}", "encode")
    assert "encode: WARNING: init_from: the model never saw '\u2603' (U+2603)" in output
    # What models/minilm is now is taken, not a copy of an earlier one from a cache.
    fresh.dvc("exp", "run", "-S", "init_from=", "-S", "seed=3", "train")
    third = read_info(model)
    fresh.dvc("exp", "run", *settings, "-S", "seed=1337", "train")
    assert read_info(model).initial_sha256 == third.model_sha256 != first.model_sha256
    second = read_info(model)
    # A model of another shape is refused, and the last one stays.
    output = fresh.dvc("exp", "run", *settings, "-S", "embed_dim=32", "-S", "num_heads=4", ok=False)
    assert (
        "error: init_from: the model to start with has embed_dim 16, not 32, and num_heads 2, not 4" in output
    )
    assert read_info(model) == second


@pytest.mark.parametrize("kind", ["a worktree", "a shallow clone without a branch"])
def test_an_experiment_in(kind, fresh):
    other = copy.copy(fresh)
    other.folder = fresh.folder.parent / kind
    if "worktree" in kind:
        fresh._git("worktree", "add", "--quiet", "-b", "other", other.folder)
    else:
        fresh._git("clone", "--quiet", "--depth", "1", fresh.folder.as_uri(), other.folder)
        other._git("checkout", "--quiet", "--detach")
    other.dvc("cache", "dir", "--local", str(fresh.folder / ".dvc" / "cache"))
    output = other.dvc("exp", "run", "--name", "x", "-S", f"seed={len(kind)}", "sample")
    assert stages_run(output) == {"train", "sample"}
    assert "x" in other.dvc("exp", "list", "--name-only").split()


def test_torchs_launcher_starts_training(fresh):
    launcher = "launcher='torchrun --standalone --nproc-per-node 1'"
    fresh.dvc("exp", "run", "-S", launcher, "-S", "seed=8", "train")
    assert fresh.mlflow_runs()[0].data.params["seed"] == "8"

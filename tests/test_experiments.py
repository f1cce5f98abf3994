"""Experiments in a clone with tiny parameters: by DVC, by the command line, on one's own text."""

import yaml

from conftest import ROOT, stages_run
from minilm.params import STAGES, load_params

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


def test_folder_of_texts_notices_a_new_file(fresh, tmp_path):
    (tmp_path / "a.txt").write_text("All work and no play. " * 40)
    fresh.set(dataset=str(tmp_path))
    fresh.dvc("repro", "download")
    assert stages_run(fresh.dvc("repro", "download")) == set()
    (tmp_path / "b.txt").write_text("More.\n" * 40)
    assert stages_run(fresh.dvc("repro", "download")) == {"download"}


def test_command_line_trains_an_experiment_by_a_recipe_and_changes_to_it(fresh):
    output = fresh.main("--train", "--recipe", "modern", "--steps", "2", "--warmup_steps", "1",
                        "--eval_interval", "1", "--compile", "false", "--embed_dim", "32",
                        "--seed", "5", "--prompt", "A, 'b' = ${c} ")  # fmt: skip
    assert stages_run(output) == {"train", "evaluate", "sample", "report"}
    assert "step 2/2" in output
    modern = yaml.safe_load((ROOT / "recipes/modern.yaml").read_text())
    written = load_params(fresh.folder / "params.yaml").train
    assert written.optimizer == modern["optimizer"]
    assert (written.steps, written.embed_dim) == (2, 32)
    assert fresh.mlflow_runs()[0].data.params["seed"] == "5"
    assert "prompt: \"A, 'b' = ${c} \"" in fresh.read("reports/samples.txt")
    assert "# of weights, batches and dropout" in fresh.read("params.yaml")
    refused = fresh.main("--train", "--recipe", "old", ok=False)
    assert "invalid choice: 'old'" in refused
    assert "'classic', 'modern', 'shakespeare-cpu'" in refused


def test_torchs_launcher_starts_training(fresh):
    launcher = "launcher='torchrun --standalone --nproc-per-node 1'"
    fresh.dvc("exp", "run", "-S", launcher, "-S", "seed=8", "train")
    assert fresh.mlflow_runs()[0].data.params["seed"] == "8"

"""The ranking compares what can be compared, and its command is one that DVC takes."""

import re
import shlex
import shutil
import sys

import pytest
from conftest import ROOT
from minilm.best import about_the_best, main, rank, table
from minilm.tracking.store import open_store

from minilm.errors import InputError
from minilm.params import FIELDS

TEXT, OTHER_TEXT = "ab" * 32, "cd" * 32
DEFAULTS = {key: field.default for key, field in FIELDS.items() if key != "device"}


class Shop:
    """A folder with params.yaml and a store that rows are put into."""

    def __init__(self, root):
        self.root = root
        shutil.copy(ROOT / "params.yaml", root)
        self.client, self.experiment = open_store(root)

    def row(self, bits, name=None, text=TEXT, model=None, status="FINISHED", tags=None, **params) -> str:
        run_id = self.client.create_run(self.experiment, run_name=name).info.run_id
        self.client.set_tag(run_id, "data_sha256", text)
        self.client.set_tag(run_id, "model_sha256", model or f"{run_id}0")
        for key, value in (tags or {}).items():
            self.client.set_tag(run_id, key, value)
        for key, value in (DEFAULTS | params).items():
            self.client.log_param(run_id, key, value)
        if bits is not None:
            self.client.log_metric(run_id, "test_bits_per_char", bits)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id


@pytest.fixture
def shop(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    # MLflow sets this variable for its children; known to monkeypatch, it is gone after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path)
    return Shop(tmp_path)


def names(ranking) -> list[str]:
    return [model.name for model in ranking.models]


def test_lowest_first_with_what_differs(shop):
    shop.row(2.0, "wide", embed_dim=256)
    shop.row(1.5, "both", embed_dim=256, learning_rate=0.001, temperature=0.5)
    shop.row(2.5, "plain", prompt="A ")
    ranking = rank(shop.root)
    assert names(ranking) == ["both", "wide", "plain"]
    assert ranking.differing == ["embed_dim", "learning_rate"]  # how samples are drawn does not matter
    assert table(ranking, 2).splitlines() == [
        "rank  bits/char  name  embed_dim  learning_rate",
        "   1     1.5000  both        256          0.001",
        "   2     2.0000  wide        256         0.0003",
        "",
        "2 of 3 models on the text abababababab",
    ]


def test_only_rows_that_say_something_are_ranked(shop):
    shop.row(0.1, "other", text=OTHER_TEXT)
    shop.row(0.2, "failed", status="FAILED")
    shop.row(0.2, "killed", status="KILLED")
    shop.row(0.2, "running", status="RUNNING")
    shop.row(None, "untested")
    shop.row(float("nan"), "diverged")
    shop.row(2.0, "old", model="ef" * 32)
    shop.row(2.0, "new", model="ef" * 32)
    ranking = rank(shop.root)
    assert names(ranking) == ["new"]
    assert table(ranking, 10).splitlines()[-1] == (
        "Rows not ranked: 2 without test_bits_per_char, 1 RUNNING, 1 KILLED, 1 FAILED, 1 of other data, "
        "1 of a model that another row is of"
    )
    assert names(rank(shop.root, "cdcd")) == ["other"]
    with pytest.raises(InputError, match="no text begins so; there are abababababab, cdcdcdcdcdcd"):
        rank(shop.root, "ef")
    shop.row(3.0, "newest", text=OTHER_TEXT)
    assert names(rank(shop.root)) == ["other", "newest"]  # the newest row's text


def test_figures_with_another_context_are_marked(shop):
    shop.row(2.0, "best")
    shop.row(2.1, "same", eval_context=64)  # which is what auto stands for
    shop.row(2.2, "none", eval_context=0)
    shop.row(2.3, "later", tags={"latest.eval_context": "16"})
    text = table(rank(shop.root), 10)
    assert re.findall(r"(?m)^ +\d +(2\.\d{4}\*?) +(\w+)", text) == [
        ("2.0000", "best"),
        ("2.1000", "same"),
        ("2.2000*", "none"),
        ("2.3000*", "later"),
    ]
    assert "* tested with another eval_context than the best" in text


def test_wide_tables_are_cut_and_say_so(shop):
    shop.row(2.0, "first", dataset="a/long/way/to/the/text/of/a/book.txt")
    changed = {key: 1 for key, value in DEFAULTS.items() if type(value) is int and key not in ("seed",)}
    shop.row(2.1, "second", **changed)
    text = table(rank(shop.root), 10)
    assert max(map(len, text.splitlines()[:3])) <= 100
    (hidden,) = re.findall("They differ in (.*) too", text)
    shown = text.splitlines()[0].split()[3:]
    assert shown[0] == "dataset"
    assert [*shown, *hidden.split(", ")] == rank(shop.root).differing


def test_without_its_files_the_best_is_trained_again(shop):
    launcher = "torchrun --standalone --nproc-per-node 2"
    shop.row(2.0, "best", embed_dim=256, tags={"git_commit": "12" * 20}, launcher=launcher)
    now = DEFAULTS | {"device": "auto", "steps": 300}
    text = about_the_best(rank(shop.root), now)
    assert "with the code of 121212121212" in text
    command = shlex.split(text.splitlines()[-1])
    # Every value but those that params.yaml has, in quotes that DVC takes.
    assert command == [
        "dvc", "exp", "run", "-S", "embed_dim=256", "-S", "steps=200", "-S", f'launcher="{launcher}"'
    ]  # fmt: skip


def test_nothing_to_rank(shop, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["best"])
    with pytest.raises(
        SystemExit, match=r"^error: nothing to rank: no finished row of .*mlflow.db has test_b\S*$"
    ):
        main()
    shop.row(2.0, status="FAILED")
    with pytest.raises(SystemExit, match=r"has test_bits_per_char; Rows not ranked: 1 FAILED$"):
        main()
    (shop.root / "mlflow.db").unlink()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow may have set it
    with pytest.raises(SystemExit, match=r"^error: nothing to rank: no notebook here: .* does not exist and"):
        main()
    assert not (shop.root / "mlflow.db").exists()

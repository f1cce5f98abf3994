"""The ranking compares what can be compared; its best becomes the champion, and its command is DVC's."""

import re
import shlex
import shutil
import subprocess
import sys

import mlflow
import pytest

from conftest import ROOT
from minilm.checkpoint import save
from minilm.data.provenance import Source
from minilm.deploy.pyfunc import log_model
from minilm.errors import InputError, UserError
from minilm.params import FIELDS
from minilm.tracking import store
from minilm.tracking.ranking import how_to_restore, main, rank, table

DATA, OTHER_DATA = "ab" * 32, "cd" * 32
DEFAULTS = {key: field.default for key, field in FIELDS.items() if key != "device"}


class Shop:
    """A folder with params.yaml and a store that runs are put into."""

    def __init__(self, root, model):
        self.root = root
        shutil.copy(ROOT / "params.yaml", root)
        (root / "dvc.yaml").write_text("stages: {}\n")
        self.client, self.experiment = store.open_store(root)
        self.model = model

    def add(self, bits, name=None, data=DATA, model=None, status="FINISHED", tags=None, **params) -> str:
        run_id = self.client.create_run(self.experiment, run_name=name).info.run_id
        tags = {"data_sha256": data, "model_sha256": model or f"{run_id}0", **(tags or {})}
        store.set_tags(self.client, run_id, tags)
        store.log_params(self.client, run_id, DEFAULTS | params)
        if bits is not None:
            self.client.log_metric(run_id, "test_bits_per_char", bits)
        if status != "RUNNING":
            self.client.set_terminated(run_id, status)
        return run_id

    def add_whole(self, bits, name, **more) -> str:
        """One with a logged model."""
        run_id = self.add(bits, name, **more)
        log_model(self.client, run_id, self.model)
        return run_id

    def rank(self, data=""):
        return rank(self.client, self.experiment, data)

    def names(self, data="") -> list[str]:
        return [run.info.run_name for run in self.rank(data)]


@pytest.fixture
def shop(tmp_path, empty_store, monkeypatch, tiny_model):
    root = tmp_path / "50 % #1 ä"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("DVC_ROOT", str(root))
    source = Source("wikitext-2", "sample", "wikitext-2", {"train": 9, "validation": 3, "test": 2}, DATA)
    save(root / "models" / "minilm", *tiny_model, {}, source, {"precision": "float32"})
    monkeypatch.chdir(root)
    shutil.copy(empty_store, root)
    yield Shop(root, root / "models" / "minilm")
    assert [*tmp_path.iterdir()] == [root]  # nothing was written beside it


def test_the_lowest_comes_first_with_what_differs(shop):
    shop.add(2.0, "wide", embed_dim=256)
    shop.add(1.5, "both", embed_dim=256, learning_rate=0.001, temperature=0.5)
    shop.add(2.5, "plain", prompt="A ")
    assert shop.names() == ["both", "wide", "plain"]
    lines = [line.split() for line in table(shop.rank(), 2).splitlines()]
    assert lines == [
        ["rank", "bits/char", "name", "embed_dim", "learning_rate"],
        ["1", "1.5000", "both", "256", "0.001"],
        ["2", "2.0000", "wide", "256", "0.0003"],
        [],
        ["2", "of", "3", "models", "on", "the", "dataset", "abababababab"],
    ]


def test_only_finished_runs_of_one_dataset_are_ranked_each_model_once(shop):
    shop.add(0.1, "other", data=OTHER_DATA)
    for status in ("FAILED", "KILLED", "RUNNING"):
        shop.add(0.2, status, status=status)
    shop.add(None, "untested")
    shop.add(float("nan"), "diverged")
    shop.add(2.0, "old", model="ef" * 32)
    shop.add(2.0, "new", model="ef" * 32)
    assert len(shop.rank()) == 1
    assert shop.names("cdcd") == ["other"]
    with pytest.raises(InputError, match=r"nothing to rank: .* on the datasets abababababab, cdcdcdcdcdcd"):
        shop.rank("ef")
    shop.add(3.0, "newest", data=OTHER_DATA)
    assert shop.names() == ["other", "newest"]  # the newest run's dataset


def test_figures_with_another_context_are_marked_and_long_lines_cut(shop):
    shop.add(2.0, "best", dataset="a/long/way/to/the/text/of/a/book/that/nobody/has/read/to/its/end/yet.txt")
    shop.add(2.1, "same", eval_context=64)  # which is what auto means
    shop.add(2.2, "none", eval_context=0, steps=7, batch_size=16)
    shop.client.set_tag(shop.add(2.3, "later"), "latest.eval_context", "16")
    text = table(shop.rank(), 10)
    assert re.findall(r"(?m)^ +\d +(2\.\d{4}\*?) +(\w+)", text) == [
        ("2.0000", "best"), ("2.1000", "same"), ("2.2000*", "none"), ("2.3000*", "later")
    ]  # fmt: skip
    assert "* evaluated with another eval_context than the best" in text
    assert max(map(len, text.splitlines())) <= 100


def test_without_its_files_the_best_is_trained_again(shop):
    launcher = "torchrun --standalone --nproc-per-node 2"
    shop.add(2.0, "best", embed_dim=256, steps=100, tags={"git_commit": "12" * 20}, launcher=launcher)
    for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
        subprocess.run(command, cwd=shop.root, check=True)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "x"]
    subprocess.run(git, cwd=shop.root, check=True)
    text = how_to_restore(shop.root, shop.rank()[0])
    assert "the code of 121212121212" in text
    # Every value but those that params.yaml has, in quotes that DVC takes.
    assert shlex.split(text.splitlines()[-1]) == [
        "dvc", "exp", "run", "-S", "embed_dim=256", "-S", "steps=100", "-S", f'launcher="{launcher}"'
    ]  # fmt: skip


def test_nothing_to_rank(shop, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ranking"])
    with pytest.raises(SystemExit, match=r"^error: nothing to rank: 0 finished runs"):
        main()
    (shop.root / "mlflow.db").unlink()
    with pytest.raises(SystemExit, match=r"^error: there is no MLflow store at .*mlflow.db; `dvc repro`"):
        main()
    assert not (shop.root / "mlflow.db").exists()


def test_the_champion_moves_to_what_is_better_on_its_dataset(shop, monkeypatch, capsys):
    def champion(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ranking", "--champion", *arguments])
        main()
        return capsys.readouterr().out.splitlines()[-1]

    def loads(run_id: str) -> bool:
        version = shop.client.get_model_version_by_alias("minilm", "champion")
        mlflow.set_tracking_uri(store.store_uri(shop.root))
        text = mlflow.pyfunc.load_model("models:/minilm@champion").predict(["the "], {"max_new_tokens": 2})[0]
        return version.run_id == run_id and len(text) == 6

    first = shop.add_whole(2.0, "first")
    assert "champion: models:/minilm@champion is now version 1: first, 2.0000 bits" in champion()
    assert loads(first)
    shop.add_whole(2.1, "worse")
    shop.add_whole(1.0, "elsewhere", data=OTHER_DATA)
    assert "champion: first stays, 2.0000 bits per character" in champion()
    better = shop.add_whole(1.9, "better")
    assert "is now version 2: better, 1.9000" in champion()
    assert "better stays" in champion()
    assert loads(better)
    assert "is now version 3: elsewhere, 1.0000" in champion("--data", OTHER_DATA[:8])
    shop.add(0.9, "without model", data=OTHER_DATA)
    with pytest.raises(SystemExit, match="has no model yet; `make sync` adds it"):
        champion()


def test_the_champion_is_chosen_from_the_same_ranking_as_the_best(shop, monkeypatch, capsys):
    shop.add_whole(0.1, "killed", status="KILLED")
    shop.add_whole(0.2, "elsewhere", data=OTHER_DATA)
    shop.add_whole(2.0, "first", eval_context=0)
    shop.add_whole(2.1, "second")
    monkeypatch.setattr(sys, "argv", ["ranking", "--champion"])
    main()
    ranking, moved = capsys.readouterr().out.rsplit("\n\n", 1)
    assert ranking == table(shop.rank(), 10)
    assert re.findall(r"(\d\.\d+\*?) +(\w+)", ranking) == [("2.0000", "first"), ("2.1000*", "second")]
    assert "evaluated with another eval_context" in ranking
    assert "is now version 1: first, " in moved


@pytest.mark.parametrize("name", ["what?", "a%20b"])
def test_a_folder_that_mlflow_would_misread_is_refused(name, elsewhere, tmp_path):
    with pytest.raises(UserError, match="rename the folder"):
        store.open_store(tmp_path / name)
    assert not (tmp_path / name.partition("?")[0]).exists()

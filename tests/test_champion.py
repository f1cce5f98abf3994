"""The champion moves only to what is better on the same text, once, whoever else asks at the same time."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from minilm.data.provenance import Source
from minilm.tracking.store import open_store
from servers import server

from minilm import generate, packaging
from minilm.champion import main, move_champion
from minilm.checkpoint import save
from minilm.errors import InputError

PROMPT = "the quick "
TEXT, OTHER_TEXT = "ab" * 32, "cd" * 32


class Shop:
    """A project's folder with models/minilm, and a store that rows are put into."""

    def __init__(self, root: Path, tiny_model):
        root.mkdir(exist_ok=True)
        self.root, self.folder = root, root / "models" / "minilm"
        save(self.folder, *tiny_model, {}, Source("sample", "sample", None, {"train": 45}, TEXT), {})
        packaging.copy_code(root / "code")
        self.client, self.experiment = open_store(root)

    def row(self, bits: float | None, text: str = TEXT, model: bool = True) -> str:
        run_id = self.client.create_run(self.experiment).info.run_id
        for key, value in (("data_sha256", text), ("model_sha256", f"{run_id}0")):
            self.client.set_tag(run_id, key, value)
        if bits is not None:
            self.client.log_metric(run_id, "test_bits_per_char", bits)
        if model:
            packaging.log_model(self.client, run_id, self.folder, self.root / "code", PROMPT)
        self.client.set_terminated(run_id)
        return run_id

    def champion(self):
        return self.client.get_model_version_by_alias("minilm", "champion")

    def versions(self) -> int:
        return len(self.client.search_model_versions("name = 'minilm'"))


@pytest.fixture
def shop(tmp_path, empty_store, tiny_model, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    # MLflow sets this variable for its children; known to monkeypatch, it is gone after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    shutil.copy(empty_store, tmp_path)
    return Shop(tmp_path, tiny_model)


def test_moves_only_to_what_is_better(shop):
    assert move_champion(shop.root) == (
        "still none: no row has test_bits_per_char and a logged model on the text abababababab"
    )
    first = shop.row(1.95)
    worse = shop.row(2.5)
    shop.row(0.5, OTHER_TEXT)  # another text's figures say nothing
    shop.row(0.4, model=False)
    shop.row(None)
    shop.row(float("nan"))
    assert move_champion(shop.root) == (
        f"moved from none to version 1 (1.9500 bits a character) on the text abababababab, run {first}"
    )
    tags = {"test_bits_per_char": "1.95", "run_id": first, "data_sha256": TEXT, "model_sha256": f"{first}0"}
    assert shop.champion().tags == tags
    for _ in range(2):
        assert move_champion(shop.root) == (
            "version 1 (1.9500 bits a character) stays: the best row has 1.9500 on the text abababababab"
        )
    shop.row(1.95)  # as good is not better
    assert "stays" in move_champion(shop.root)
    assert "stays: the best given row has 2.5000" in move_champion(shop.root, worse)
    assert shop.versions() == 1
    better, best = shop.row(1.9), shop.row(1.8)
    assert f"to version 2 (1.9000 bits a character) on the text abababababab, run {better}" in move_champion(
        shop.root, better
    )
    assert move_champion(shop.root) == (
        "moved from version 2 (1.9000 bits a character) to version 3 (1.8000 bits a character) "
        f"on the text abababababab, run {best}"
    )
    assert shop.versions() == 3


def test_another_text_needs_a_word(shop):
    shop.row(1.9)
    other = shop.row(3.0, OTHER_TEXT)
    move_champion(shop.root)
    with pytest.raises(InputError, match="another text than the champion, version 1"):
        move_champion(shop.root, other)
    assert "moved from version 1 (1.9000 bits a character) to version 2 (3.0000" in move_champion(
        shop.root, other, new_text=True
    )
    # From now on the new text counts; models/minilm is of the old one still.
    assert "stays: the best row has 3.0000 on the text cdcdcdcdcdcd" in move_champion(shop.root)
    assert "to version 1 (1.9000" in move_champion(shop.root, new_text=True)
    # On the same text the word changes nothing.
    assert "stays" in move_champion(shop.root, new_text=True)
    assert shop.versions() == 2


def test_what_the_row_says_today_counts(shop):
    champion, second = shop.row(1.9), shop.row(1.95)
    move_champion(shop.root)
    shop.client.log_metric(champion, "test_bits_per_char", 1.96, step=1)  # evaluated again
    said = move_champion(shop.root)
    assert "from version 1 (1.9600 bits a character) to version 2 (1.9500 bits a character)" in said
    assert shop.champion().run_id == second
    shop.client.log_metric(champion, "test_bits_per_char", 1.94, step=2)
    assert "to version 1 (1.9400" in move_champion(shop.root)
    assert shop.champion().tags["test_bits_per_char"] == "1.94"
    assert shop.versions() == 2


def test_deleted_models_and_rows(shop):
    gone, there = shop.row(1.8), shop.row(1.9)
    (model,) = shop.client.get_run(gone).outputs.model_outputs
    shop.client.delete_logged_model(model.model_id)
    assert f"run {there}" in move_champion(shop.root)
    with pytest.raises(InputError, match="no logged model"):
        move_champion(shop.root, gone)
    shop.client.delete_run(there)
    assert "version 1 (1.9000 bits a character) stays: no row" in move_champion(shop.root)


def test_rows_of_no_use_are_named(shop):
    with pytest.raises(InputError, match="has no test_bits_per_char"):
        move_champion(shop.root, shop.row(None))
    foreign = shop.client.create_run(shop.client.create_experiment("other")).info.run_id
    with pytest.raises(InputError, match="not of the experiment minilm"):
        move_champion(shop.root, foreign)
    (shop.folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        move_champion(shop.root)


def test_alias_set_by_hand_without_any_figure(shop):
    shop.client.create_registered_model("minilm")
    shop.client.create_model_version("minilm", source=shop.folder.as_uri())
    shop.client.set_registered_model_alias("minilm", "champion", "1")
    with pytest.raises(InputError, match="neither its tags nor its row has 'data_sha256'"):
        move_champion(shop.root)
    shop.client.delete_registered_model_alias("minilm", "champion")
    run_id = shop.row(1.9)
    assert f"run {run_id}" in move_champion(shop.root)


def test_several_at_once_register_one_version(shop):
    run_id = shop.row(1.9)
    with ThreadPoolExecutor(4) as pool:
        said = sorted(pool.map(move_champion, [shop.root] * 4))
    assert [line.split()[0] for line in said] == ["moved", "version", "version", "version"]
    assert shop.versions() == 1
    assert shop.champion().run_id == run_id


def test_command(shop):
    shop.row(1.9)
    done = subprocess.run(
        [sys.executable, "-m", "minilm.champion"], cwd=shop.root, text=True, capture_output=True
    )
    assert done.stdout.startswith("champion: moved from none to version 1 (1.9000 bits a character)")
    assert (done.stderr, done.returncode, shop.versions()) == ("", 0, 1)


def test_mistake_is_told_in_one_line(shop, monkeypatch):
    monkeypatch.chdir(shop.root)
    monkeypatch.setattr(sys, "argv", ["champion", "0" * 32])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == f"error: MLflow: Run with id={'0' * 32} not found"


def test_with_a_server(tmp_path, tiny_model, monkeypatch):
    store = ("--backend-store-uri", "sqlite:///store.db", "--artifacts-destination", "artifacts")
    with server(tmp_path, "/health", "server", *store, "--workers", "1") as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        shop = Shop(tmp_path / "my project", tiny_model)
        run_id = shop.row(1.9)
        run = shop.client.get_run(run_id)
        packaging.log_model(shop.client, run_id, shop.folder, shop.root / "code", PROMPT)
        assert shop.client.get_run(run_id).to_dictionary() == run.to_dictionary()
        assert move_champion(shop.root).startswith("moved from none to version 1 (1.9000")
        model = mlflow.pyfunc.load_model("models:/minilm@champion")
        text = generate(*tiny_model, PROMPT, seed=3)
        assert model.predict([PROMPT], params={"seed": 3}) == [text]
        assert "".join(model.predict_stream(PROMPT, params={"seed": 3})) == text
        assert not (shop.root / "mlflow.db").exists()

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from exporting import CONFIG, SOURCE, save_model
from huggingface_hub import ModelCard
from minilm.deploy.huggingface import export

from minilm import checkpoint

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its tokenizer, its folder, and the folder of what it was exported to."""
    base = tmp_path_factory.mktemp("my models")
    model, tokenizer = save_model(base / "model", CONFIG)
    export(base / "model", base / "out")
    return model, tokenizer, base / "model", base / "out"


def front_matter(out: Path) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", (out / "README.md").read_text(), re.DOTALL)[1])


def test_the_card_says_where_the_model_comes_from_and_what_it_cannot_do(exported):
    _, ours, folder, out = exported
    card = ModelCard.load(out / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.language == ["en"]
    assert card.data.datasets == ["Salesforce/wikitext"]
    assert card.data.tags == ["minilm", "character-level", "gpt2"]
    assert not card.data.eval_results
    for part in (
        "# MiniLM on wikitext-2\n",
        'origin: "hub:Salesforce/wikitext:wikitext-2-raw-v1"',
        'characters: {"train": 1234567}',
        'sha256: "ab12"',
        "No metrics of this model were found",
        "learning_rate: 0.0003",
        'activation: "relu"',
        checkpoint.read_card(folder).model_sha256,
        "It sees 25 characters at once",
        f"It knows {ours.vocab_size - 1} characters",
    ):
        assert part in card.text, part
    assert "WARNING" not in card.text


def test_the_sample_text_is_loud_and_an_unknown_language_is_not_claimed(tmp_path):
    save_model(tmp_path / "a", CONFIG, replace(SOURCE, origin="sample", fallback_for="wikitext-2"))
    export(tmp_path / "a", tmp_path / "a out")
    text = (tmp_path / "a out" / "README.md").read_text()
    assert "# MiniLM on the bundled sample text\n\n> **WARNING: " in text
    assert "datasets" not in front_matter(tmp_path / "a out")
    odd = 'file:my | `book`: "é".txt'
    save_model(tmp_path / "b", CONFIG, replace(SOURCE, dataset="book.txt", origin=odd))
    export(tmp_path / "b", tmp_path / "b out")
    assert not {"language", "datasets"} & set(front_matter(tmp_path / "b out"))
    lines = re.findall(r"```yaml\n(.*?)```", (tmp_path / "b out" / "README.md").read_text(), re.DOTALL)
    assert yaml.safe_load(lines[0])["origin"] == odd


@pytest.fixture(scope="module")
def notebook(exported, tmp_path_factory):
    """A folder with a real store, in which the exported model has an older and a newer row."""
    from minilm.tracking.store import MlflowClient

    root = tmp_path_factory.mktemp("notebook")
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.create_experiment("minilm", artifact_location=(root / "mlruns").as_uri())
    mine = {"model_sha256": checkpoint.read_card(exported[2]).model_sha256}
    rows = [
        (1, mine, {"test_loss": 9.0}),
        (2, mine, {"train_loss": 2.0, "test_loss": 2.5, "test_perplexity": float("nan"), "ngram_loss": 1.7}),
        (3, mine, {"train_loss": 2.0}),  # not evaluated yet
        (4, {"model_sha256": "another"}, {"test_loss": 7.0}),
    ]
    for start, tags, metrics in rows:
        run = client.create_run(experiment, start_time=start, tags=tags).info.run_id
        for key, value in metrics.items():
            client.log_metric(run, key, value)
    client.log_metric(
        client.search_runs([experiment], "metrics.test_loss = 2.5")[0].info.run_id, "test_accuracy", 0.287
    )
    return root


@pytest.mark.parametrize("by", ["folder", "DVC_ROOT", "MLFLOW_TRACKING_URI"])
def test_metrics_come_from_the_models_newest_evaluated_row(by, exported, notebook, tmp_path, monkeypatch):
    if by == "folder":
        monkeypatch.chdir(notebook)
    else:
        monkeypatch.setenv(by, f"sqlite:///{notebook / 'mlflow.db'}" if "URI" in by else str(notebook))
    assert export(exported[2], tmp_path / "out").endswith("README.md with 4 metrics from MLflow")
    (result,) = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()["model-index"][0]["results"]
    assert result["dataset"]["type"] == "Salesforce/wikitext"
    assert result["dataset"]["config"] == "wikitext-2-raw-v1"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        "loss": 2.5,
        "accuracy": 0.287,
    }
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| loss | 2.5 |" in text
    assert "| accuracy | 28.7 % |" in text
    assert "| n-gram loss | 1.7 |" in text
    assert "train_loss" not in text


def test_a_notebook_without_the_model_gives_no_metrics(notebook, tmp_path, monkeypatch):
    save_model(tmp_path / "model", replace(CONFIG, num_layers=1))
    monkeypatch.setenv("DVC_ROOT", str(notebook))
    assert "no metrics" in export(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize("uri", [None, "sqlite:///missing.db"])
def test_no_store_is_made(uri, exported, tmp_path, monkeypatch):
    if uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    export(exported[2], tmp_path / "out")
    assert not any(Path.cwd().iterdir())


def test_a_server_that_cannot_be_reached_costs_the_metrics_only(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    export(exported[2], tmp_path / "out")
    assert "No metrics of this model were found" in (tmp_path / "out" / "README.md").read_text()
    warning = capsys.readouterr().err.strip()
    assert warning.startswith("WARNING: MLflow could not be read, the card has no metrics: ")
    assert "\n" not in warning

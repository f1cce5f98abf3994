"""What README and the documents say that a machine can check: sizes, figures, tables, and the commands."""

import csv
import re
import shlex
import xml.etree.ElementTree as ET
from importlib.util import find_spec

import pytest
import torch
from dvc.cli import parse_args

import main
from conftest import ROOT
from docs.architecture import VOCABULARY, architecture
from minilm import MiniGPT, ModelConfig
from minilm.params import load_params, load_recipe
from test_docs import losses_of_trials

README = (ROOT / "README.md").read_text()


def shapes(svg: str) -> list[str]:
    """The shapes in the picture, the model's before the block's."""
    return [text.text for text in ET.fromstring(svg).iter() if text.get("class") == "shape"]


def test_the_picture_of_the_model_is_that_of_params():
    params = load_params(ROOT / "params.yaml").train
    assert (ROOT / "docs/architecture.svg").read_text() == architecture(params, VOCABULARY)


@pytest.mark.parametrize("recipe", ["classic", "modern", "shakespeare-cpu"])
def test_the_shapes_in_the_picture_are_those_that_the_model_has(recipe):
    changes = load_recipe(ROOT / f"recipes/{recipe}.yaml") | {"batch_size": "2", "activation": "swiglu"}
    params = load_params(ROOT / "params.yaml", changes).train
    model, found = MiniGPT(ModelConfig.from_params(20, params)), {}
    for name, part in model.named_modules():
        part.register_forward_hook(lambda _, given, out, name=name: found.update({name: (given[0], out)}))
    ids = torch.zeros(2, params.block_size, dtype=torch.long)
    logits = model(ids)
    first = model.blocks[0]
    query, key, value = first.attention.project_qkv(found["blocks.0.attention"][0])
    weights = first.attention.attention_weights(query, key)
    expected = [
        ids,
        found["blocks.0"][0],
        found[f"blocks.{params.num_layers - 1}"][1],
        found["final_norm"][1],
        logits,
        logits.softmax(-1),
        found["blocks.0.attention_norm"][1],
        torch.stack([query, key, value]),
        weights,
        found["blocks.0.attention"][1],
        found["blocks.0.mlp_norm"][1],
        found["blocks.0.mlp.projection"][0],
        found["blocks.0.mlp"][1],
    ]
    svg = architecture(params, 20)
    assert shapes(svg) == [str(tuple(tensor.shape)) for tensor in expected]
    assert f"The model: {model.num_parameters:,} parameters" in svg


def document(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()


def test_readme_is_short_and_its_pictures_are_there():
    assert README.count("\n") <= 150
    pictures = re.findall(r'src="([^"]+)"|!\[[^]]+\]\(([^)]+)\)', README)
    assert {name for names in pictures for name in names if name} == {
        "docs/film.webp",
        "docs/explorer.png",
        "docs/pipeline.svg",
        "docs/architecture.svg",
    }
    assert all((ROOT / name).stat().st_size for names in pictures for name in names if name)


def test_the_commands_within_sentences_are_ones_that_there_are():
    pages = [path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
    inline = [command for page in pages for command in re.findall(r"`((?:python|make|dvc) [^`]+)`", page)]
    targets = re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text())
    assert len(inline) > 40
    for command in inline:
        match shlex.split(command):
            case ["make", *words]:
                assert {word for word in words if "=" not in word} <= {*targets, ".venv/installed"}, command
            case ["python", "-m", module, *_]:
                assert find_spec(module), command
            case ["python", "main.py", *flags]:
                main.make_parser().parse_args(main.joined(flags))
            case ["dvc", *words] if words[2:] or words[0] != "exp":  # `dvc exp apply` is only a name
                parse_args([word.replace("...", "seed=1") for word in words])


def test_the_index_names_every_page():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages <= set(re.findall(r"\]\(([\w-]+\.md)\)", document("index")))


def test_readmes_minutes_of_reading_are_those_of_twelve_lines_each():
    rows = re.findall(r"(?m)^\| (\d+) \| (\[.*?\.py\)) \|", README)
    assert len(rows) == 6
    for minutes, links in rows:
        files = re.findall(r"\]\((.*?)\)", links)
        lines = sum((ROOT / name).read_text().count("\n") for name in files)
        assert abs(lines / 12 - int(minutes)) <= 3, links


def test_readmes_losses_are_those_of_the_measurements():
    rows = dict(re.findall(r"(?m)^\| (.+?\?) \| (.+?) \| \[\d+\]", README))
    with (ROOT / "docs/scaling.csv").open() as file:
        runs = {(run["changed"], run["value"]): run for run in csv.DictReader(file)}
    memorized = runs["characters", "30000"]
    one, two = (runs["num_layers", value]["val_loss"] for value in "12")
    assert rows["What does a second layer add?"].startswith(f"from {one} to {two},")
    assert (
        f"{memorized['train_loss']} in training, {memorized['val_loss']} in"
        in (rows["When does it memorize?"])
    )
    tried = losses_of_trials(ROOT / "docs/choices.csv")
    plain = "token_shift=0 ngram_embedding=1"
    names = (plain, f"{plain} position=learned", f"{plain} optimizer=adamw learning_rate=0.003")
    rope, learned, adam = (f"{tried[name]:.3f}" for name in names)
    assert rows["Do positions matter?"].startswith(f"learned {learned}, RoPE {rope},")
    assert rows["AdamW or Muon?"].startswith(f"{adam} and {rope} ")
    found = re.findall(r"evaluate: (?:loss )?([\d.]+) nats", document("evaluation"))
    model, letters, ngrams = (f"{float(loss):.2f}" for loss in found)
    counting = f"{letters} with single letters, {ngrams} with 6-grams; the default model: {model}"
    assert rows["How far does counting get?"] == counting
    whole, modern = re.search(
        r"pipeline \| (\d+ s) [\s\S]* with ([\d.]+) nats", document("evaluation")
    ).groups()
    assert re.search(
        rf"`make repro` \| .*{whole} \| .* \| {model} \|\n\| .* \| {float(modern):.2f} \|", README
    )

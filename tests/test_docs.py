"""The documents: links, symbols and commands lead somewhere; commands.py runs the commands."""

import importlib
import re
import shlex
import tomllib
from functools import reduce
from importlib.util import find_spec
from pathlib import Path

import pandas
import pytest
import torch
from dvc.cli import parse_args
from mlflow.cli import cli

import main
from benchmarks import ladder
from conftest import ROOT
from minilm.model import gpt
from minilm.params import FIELDS, load_params, load_recipe

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def prose(document: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"(?m)^```[\s\S]*?^```|^(?: {4}.*\n)+", "", document.read_text())


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(document))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_blocks(document: Path) -> list[str]:
    """The indented blocks of a document, each as one text."""
    unfenced = re.sub(r"(?m)^```[\s\S]*?^```", "", document.read_text())
    found = re.findall(r"(?m)(?:^ {4}.*\n|^\n(?= {4}))+", unfenced)
    return [re.sub(r"(?m)^ {4}", "", block) for block in found]


def commands(document: Path) -> list[list[str]]:
    """The words of each command of ours in the document's blocks, without comments."""
    lines = re.split(r"\n| && ", "".join(code_blocks(document)).replace("\\\n", " "))
    called = [line for line in lines if re.match(r"(dvc|make|mlflow|pip|python) [\w.-]", line)]
    return [shlex.split(line, comments=True) for line in called]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for text, target in LINK.findall(prose(document)):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            linked = (document.parent / path).resolve() if path else document
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target
        if (symbol := re.fullmatch(r"`(\w+(?:\.\w+)*)`", text)) and path.endswith(".py"):
            module = importlib.import_module(".".join(linked.relative_to(ROOT).with_suffix("").parts))
            reduce(getattr, symbol[1].split("."), module)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_ones_that_there_are(document):
    targets = re.findall(r"(?m)^([\w./]+):", (ROOT / "Makefile").read_text())
    for command in commands(document):
        match command:
            case ["make", *words]:
                assert {word for word in words if "=" not in word} <= set(targets), command
            case ["python", "-m", module, *_]:
                assert find_spec(module), command
            case ["python", "main.py", *flags]:
                main.make_parser().parse_args(main.joined(flags))
            case ["dvc", *words]:
                changes = getattr(parse_args(words), "set_param", None) or []
                pairs = [change.removeprefix("params.yaml:").split("=", 1) for change in changes]
                assert {key for key, _ in pairs} <= FIELDS.keys(), command
            case ["mlflow", name, *words]:
                cli.get_command(None, name).make_context(name, words)  # parses, and runs nothing
            case ["pip", "install", *_, last]:
                assert set(re.findall(r"\.\[(\w+)\]", last)) <= EXTRAS.keys(), command


def test_the_experiments_of_theory_are_ones_that_the_schema_allows():
    changes = re.findall(r"(?m)^\| `(\w+=[^`]*)` \|", (ROOT / "docs/theory.md").read_text())
    assert len(changes) == 15
    for change in changes:
        load_params(ROOT / "params.yaml", dict(pair.split("=") for pair in change.split()))


def losses_of_trials(path: Path) -> dict[str, float]:
    """The mean loss of each candidate in a file that benchmarks.ladder wrote."""
    return pandas.read_csv(path).groupby("candidate").val_loss.mean().to_dict()


def test_theorys_losses_are_those_of_its_trials_and_its_model_has_the_size_that_it_says():
    theory, losses = (ROOT / "docs/theory.md").read_text(), losses_of_trials(ROOT / "docs/theory.csv")
    plain = "token_shift=0 ngram_embedding=1 steps=120"
    assert f"**{losses[plain]:.3f}**" in theory
    assert f"is {losses['ngram_embedding=1']:.3f} instead of {losses[ladder.RECIPE]:.3f}" in theory
    for change, said in (("tied_embeddings=true", "to {:.3f}"), ("zero_init_projections=false", "is {:.3f}")):
        assert said.format(losses[f"{plain} {change}"]) in " ".join(theory.split())
    for change, loss in re.findall(r"(?m)^\| `(\w+=[^`]*)` \| ([\d.]+) \|", theory):
        assert f"{losses[f'{plain} {change}']:.3f}" == loss, change
    recipe = load_params(ROOT / "params.yaml", load_recipe(ROOT / "recipes/shakespeare-small.yaml")).train
    model = gpt.MiniGPT(gpt.ModelConfig.from_params(66, recipe))
    assert f"The model has {model.num_parameters:,} parameters, {recipe.num_layers} blocks" in theory


def test_the_losses_of_the_choices_are_those_of_their_trials():
    losses, plain = losses_of_trials(ROOT / "docs/choices.csv"), "token_shift=0 ngram_embedding=1"
    rows = re.findall(r"(?m)^\| `(\w+=[^`]*)` \| (\d\.\d{3}) \|", (ROOT / "docs/experiments.md").read_text())
    assert len(rows) == 12
    for change, loss in rows:
        assert f"{losses[f'{plain} {change}']:.3f}" == loss, change


@pytest.mark.parametrize("name", ["ladder.csv", "ladder_minutes.csv"])
def test_the_tables_of_the_ladder_are_those_of_their_trials(name):
    trials = [ladder.Trial(*row) for row in pandas.read_csv(ROOT / "docs" / name).itertuples(index=False)]
    assert ladder.table(trials) in (ROOT / "docs/experiments.md").read_text()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("ladder_small.csv", "ngram_embedding=2", "the mean loss is 1.501 or"),
        ("ladder_small.csv", "ngram_embedding=3", "or 1.529 instead of 1.485"),
        ("ladder_small.csv", "weight_decay=0.4", "1.477 instead of 1.485"),
        ("ladder_both.csv", "learning_rate=0.016 weight_decay=0.3", "both together gain 0.005"),
    ],
)
def test_the_losses_in_the_text_are_those_of_their_trials(name, change, said):
    losses = losses_of_trials(ROOT / "docs" / name)
    known = losses[ladder.RECIPE], losses[change], losses[ladder.RECIPE] - losses[change]
    assert set(re.findall(r"\d\.\d{3}", said)) <= {f"{value:.3f}" for value in known}
    assert said in " ".join((ROOT / "docs/experiments.md").read_text().split())


def test_each_section_of_theory_has_all_its_parts_and_cites_the_literature():
    *sections, literature = re.split(r"(?m)^## ", (ROOT / "docs/theory.md").read_text())
    assert len(sections) == 1 + 12
    for section in sections[1:]:
        parts = ("$", "](img/", "Code: [`", "**Experiment.**", "<details><summary>Question:")
        assert [part for part in parts if part not in section] == [], section[:20]
    text = " ".join(" ".join(sections).split())
    cited = set(re.findall(r"([\w-]+)( and [\w-]+| et al\.)?, ((?:19|20)\d\d)\b", text))
    works = [" ".join(work.split()) for work in literature.split("\n- ")[1:]]
    assert len(works) == len(cited)
    for name, _, year in cited:
        assert [work for work in works if re.match(rf"[^,]*?\b{name}\b", work) and year in work], name


def test_theory_runs_as_it_stands_there(project, tmp_path, monkeypatch, capsys):
    theory = ROOT / "docs/theory.md"
    monkeypatch.chdir(project.folder)
    exec(re.search(r"```python\n(.*?)```", theory.read_text(), re.DOTALL)[1], {})
    assert len(re.findall(r"\.(naive|kv_cache) \d+ characters per second", capsys.readouterr().out)) == 2
    from docs.figures import main as draw

    draw(tmp_path)
    pictures = {Path(target).name for _, target in LINK.findall(theory.read_text()) if "img/" in target}
    assert {path.name for path in tmp_path.iterdir()} == pictures
    committed = [(ROOT / "docs/img" / name).stat().st_size for name in pictures]
    assert max(committed) < 60_000
    assert sum(committed) < 700_000


def test_pipelines_model_is_one():
    text = (ROOT / "docs/pipeline.md").read_text()
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names := vars(gpt).copy())
    block = names["GRUBlock"](gpt.ModelConfig(5, embed_dim=8, num_heads=2))
    assert block(torch.zeros(2, 3, 8)).shape == (2, 3, 8)


def test_a_stage_of_ones_own_makes_the_text_as_pipeline_says(tmp_path, monkeypatch):
    text = (ROOT / "docs/pipeline.md").read_text()
    names = {"__name__": "additions"}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    names["main"]()
    lines = Path("data/additions.txt").read_text().splitlines()
    assert all(eval(left) == int(right) for left, right in (line.split("=") for line in lines))
    assert f"A line has {Path('data/additions.txt').stat().st_size / len(lines):.2f} characters" in text

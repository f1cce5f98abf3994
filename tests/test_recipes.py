"""Every recipe that comes with the project is valid, trains, and means the same wherever it starts."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from minilm import CharTokenizer, MiniGPT, ModelConfig, train
from minilm.data.corpus import sample_corpus
from minilm.errors import InputError
from minilm.params import TrainParams, load_params, load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_recipes_are_those_of_the_documents_with_their_sizes():
    text = (ROOT / "docs/training.md").read_text()
    rows = {
        name: cells for name, *cells in re.findall(r"(?m)^\| `([\w-]+)` \| ([\d,]+) \| ([\d,]+) \|", text)
    }
    assert rows.keys() == {path.stem for path in RECIPES}
    for path in RECIPES:
        params = load_params(ROOT / "params.yaml", load_recipe(path)).train
        vocab_size = 66 if "shakespeare" in path.stem else 80 if path.stem == "lesson" else 260
        size = MiniGPT(ModelConfig.from_params(vocab_size, params)).num_parameters
        assert rows[path.stem] == [f"{size:,}", f"{params.steps:,}"]
    sizes = {name: size for name, (size, _) in rows.items()}
    lessons, evaluation = (ROOT / f"docs/{name}.md" for name in ("lessons/index", "evaluation"))
    assert f"a model of {sizes['lesson']} parameters" in lessons.read_text()
    assert f"| parameters of the model | {sizes['classic']} |" in evaluation.read_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_changes_only_training_and_tells_its_result(path):
    values = yaml.safe_load(path.read_text())
    assert values.keys() <= TrainParams.model_fields.keys()
    params = load_params(ROOT / "params.yaml", load_recipe(path)).train
    assert params.model_dump() | values == params.model_dump()
    assert "nats" in path.read_text().split("\n\n")[0]
    # From whatever params.yaml holds, the recipe leads to the same training.
    elsewhere = {"mlp_ratio": "3", "optimizer": "muon", "attention_dropout": "0.5"}
    assert load_params(ROOT / "params.yaml", elsewhere | load_recipe(path)).train == params


def test_classic_is_the_defaults():
    assert (
        load_params(ROOT / "params.yaml", load_recipe(ROOT / "recipes/classic.yaml")).train == TrainParams()
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_learns_a_pattern(path):
    tokens = np.tile(np.arange(1, 12, dtype=np.uint8), 100)
    assert loss_after(30, path, tokens) < 0.5 * math.log(11)


def test_modern_learns_more_than_classic_in_as_many_steps():
    text = "".join(sample_corpus().splits["train"]())
    tokens = CharTokenizer.from_text(text).encode(text)
    modern, classic = (
        loss_after(50, ROOT / "recipes" / f"{name}.yaml", tokens) for name in ("modern", "classic")
    )
    assert modern < classic - 0.3


def loss_after(steps, recipe, tokens) -> float:
    """The recipe's loss on what it was trained on, in few and short windows."""
    short = {"steps": str(steps), "eval_interval": str(steps), "eval_batches": "1"}
    short |= {"batch_size": "8", "block_size": "64"}
    values = load_recipe(recipe)
    short["warmup_steps"] = str(min(5, int(values["warmup_steps"])))
    params = load_params(ROOT / "params.yaml", values | short).train
    model = MiniGPT(ModelConfig.from_params(int(tokens.max()) + 1, params), seed=params.seed)
    (report,) = train(model, tokens, tokens, params)
    return report.val_loss


def test_a_mistake_in_a_recipe_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimiser: adamw\n")
    with pytest.raises(InputError, match="optimiser: no such parameter; did you mean optimizer"):
        load_params(ROOT / "params.yaml", load_recipe(tmp_path / "mine.yaml"))

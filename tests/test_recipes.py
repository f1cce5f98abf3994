"""Every recipe that comes with the project is valid, trains, and means the same wherever it starts."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from minilm import MiniGPT, ModelConfig, train
from minilm.errors import InputError
from minilm.params import TrainParams, load_params, load_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_recipes_that_the_readme_names_are_there():
    assert {"classic", "modern", "shakespeare-cpu"} <= {path.stem for path in RECIPES}
    readme = (ROOT / "README.md").read_text()
    for path in RECIPES:
        assert f"`{path.stem}`" in readme


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
def test_recipe_trains(path):
    short = {"steps": "3", "warmup_steps": "1", "eval_interval": "3", "eval_batches": "1", "compile": "false"}
    params = load_params(ROOT / "params.yaml", load_recipe(path) | short).train
    tokens = np.tile(np.arange(1, 12, dtype=np.uint8), 100)
    (report,) = train(MiniGPT(ModelConfig.from_params(12, params)), tokens, tokens, params)
    assert report.step == 3


def test_a_mistake_in_a_recipe_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("optimiser: adamw\n")
    with pytest.raises(InputError, match="optimiser: no such parameter; did you mean optimizer"):
        load_params(ROOT / "params.yaml", load_recipe(tmp_path / "mine.yaml"))

"""What README and the documents say that a machine can check: sizes, figures, tables, and the commands."""

import xml.etree.ElementTree as ET

import pytest
import torch

from conftest import ROOT
from docs.architecture import VOCABULARY, architecture
from minilm import MiniGPT, ModelConfig
from minilm.params import load_params, load_recipe


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

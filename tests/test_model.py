import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from minilm import MiniGPT, ModelConfig, SelfAttention, TransformerBlock
from minilm.errors import InputError

CONFIG = ModelConfig(vocab_size=11, block_size=12, embed_dim=24, num_heads=3, num_layers=2)


def randomised(config: ModelConfig) -> MiniGPT:
    """Weights far from their initial values, gains and biases included, so that every one matters."""
    model = MiniGPT(config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def as_gpt2(model: MiniGPT) -> GPT2LMHeadModel:
    config = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.block_size,
            n_embd=config.embed_dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            activation_function={"relu": "relu", "gelu": "gelu_new"}[config.activation],
        )
    ).eval()
    names = {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.projection": "attn.c_proj",
        "mlp.expand": "mlp.c_fc",
        "mlp.projection": "mlp.c_proj",
    }
    theirs = twin.state_dict()
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        prefix = ""
        if layer.startswith("blocks."):
            _, number, layer = layer.split(".", 2)
            prefix = f"transformer.h.{number}."
        # GPT-2 keeps its matrices as (in, out).
        transposed = kind == "weight" and layer.startswith(("attention.", "mlp."))
        theirs[f"{prefix}{names[layer]}.{kind}"].copy_(tensor.T if transposed else tensor)
    return twin


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_logits_equal_those_of_hugging_faces_gpt2(activation):
    model = randomised(ModelConfig(11, 12, 24, 3, 2, activation=activation))
    ids = torch.randint(0, 11, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), as_gpt2(model)(ids).logits, atol=1e-4, rtol=1e-4)


def test_attention_equals_its_formula_position_by_position():
    model = randomised(CONFIG)
    attention: SelfAttention = model.blocks[0].attention
    x = torch.randn(1, 5, 24, generator=torch.Generator().manual_seed(2))
    query, key, value = attention.qkv(x)[0].split(24, dim=-1)
    heads = []
    for head in range(3):
        part = slice(8 * head, 8 * head + 8)
        rows = []
        for position in range(5):
            scores = [
                query[position, part] @ key[other, part] / math.sqrt(8) for other in range(position + 1)
            ]
            weights = torch.softmax(torch.stack(scores), 0)
            rows.append(sum(weight * value[other, part] for other, weight in enumerate(weights)))
        heads.append(torch.stack(rows))
    expected = attention.projection(torch.cat(heads, dim=-1))
    torch.testing.assert_close(attention(x)[0], expected, atol=1e-5, rtol=1e-4)


def test_a_later_character_changes_no_earlier_logit():
    model = randomised(CONFIG)
    ids = torch.zeros(1, 12, dtype=torch.long)
    with torch.no_grad():
        before = model(ids)
        for position in range(12):
            changed = ids.clone()
            changed[0, position] = 7
            after = model(changed)
            torch.testing.assert_close(after[0, :position], before[0, :position])
            assert not torch.allclose(after[0, position], before[0, position])


def test_same_seed_same_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, second, third = MiniGPT(CONFIG, 1), MiniGPT(CONFIG, 1), MiniGPT(CONFIG, 2)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.token_embedding.weight, third.token_embedding.weight)


def test_initial_loss_is_that_of_guessing():
    ids, targets = torch.randint(0, 11, (2, 64, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        loss = F.cross_entropy(MiniGPT(CONFIG)(ids).flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(11), abs=0.1)


def test_dropout_acts_only_in_training():
    model = MiniGPT(ModelConfig(11, 12, 24, 3, 2, attention_dropout=0.5, mlp_dropout=0.5))
    ids = torch.zeros(1, 12, dtype=torch.long)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


def test_parts_keep_the_shape_and_count_their_parameters():
    x = torch.randn(2, 5, 24)
    assert TransformerBlock(CONFIG)(x).shape == x.shape
    model = MiniGPT(CONFIG)
    block = 2 * 2 * 24 + (24 * 72 + 72) + (24 * 24 + 24) + (24 * 96 + 96) + (96 * 24 + 24)
    assert model.num_parameters == 11 * 24 + 12 * 24 + 2 * block + 2 * 24


def test_impossible_shapes_and_lengths_are_refused():
    with pytest.raises(InputError, match="not divisible"):
        ModelConfig(11, embed_dim=10, num_heads=3)
    with pytest.raises(InputError, match="relu, gelu"):
        ModelConfig(11, activation="sine")
    with pytest.raises(InputError, match="13 characters are more than the model's block_size, 12"):
        MiniGPT(CONFIG)(torch.zeros(1, 13, dtype=torch.long))

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from helpers.models import randomized
from minilm import MiniGPT, ModelConfig, SelfAttention, TransformerBlock
from minilm.errors import InputError
from minilm.model.config import ACTIVATIONS, NORMALIZATIONS, POSITIONS
from minilm.model.gpt import MLP, normalization
from minilm.model.positions import alibi_slopes, rope_rotation, rotate

CONFIG = ModelConfig(vocab_size=11, block_size=12, embed_dim=24, num_heads=3, num_layers=2)


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
    model = randomized(ModelConfig(11, 12, 24, 3, 2, activation=activation))
    ids = torch.randint(0, 11, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), as_gpt2(model)(ids).logits, atol=1e-4, rtol=1e-4)


def as_llama(model: MiniGPT) -> LlamaForCausalLM | Qwen3ForCausalLM:
    """Qwen3 is Llama with normalized queries and keys."""
    config = model.config
    hidden = model.blocks[0].mlp.projection.in_features
    cls, config_cls = (Qwen3ForCausalLM, Qwen3Config) if config.qk_norm else (LlamaForCausalLM, LlamaConfig)
    twin = cls(
        config_cls(
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            intermediate_size=hidden,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.block_size,
            rms_norm_eps=1e-5,
            tie_word_embeddings=config.tied_embeddings,
        )
    ).eval()
    ours, theirs = model.state_dict(), {}
    theirs["model.embed_tokens.weight"] = ours["token_embedding.weight"]
    theirs["lm_head.weight"] = ours["token_embedding.weight" if config.tied_embeddings else "head.weight"]
    theirs["model.norm.weight"] = ours["final_norm.weight"]
    for layer in range(config.num_layers):
        block, prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        query, key, value = ours[block + "attention.qkv.weight"].chunk(3)
        gate, up = ours[block + "mlp.expand.weight"].chunk(2)
        theirs |= {
            prefix + "self_attn.q_proj.weight": query,
            prefix + "self_attn.k_proj.weight": key,
            prefix + "self_attn.v_proj.weight": value,
            prefix + "self_attn.o_proj.weight": ours[block + "attention.projection.weight"],
            prefix + "mlp.gate_proj.weight": gate,
            prefix + "mlp.up_proj.weight": up,
            prefix + "mlp.down_proj.weight": ours[block + "mlp.projection.weight"],
            prefix + "input_layernorm.weight": ours[block + "attention_norm.weight"],
            prefix + "post_attention_layernorm.weight": ours[block + "mlp_norm.weight"],
        }
        if config.qk_norm:
            theirs[prefix + "self_attn.q_norm.weight"] = ours[block + "attention.query_norm.weight"]
            theirs[prefix + "self_attn.k_norm.weight"] = ours[block + "attention.key_norm.weight"]
    twin.load_state_dict(theirs)
    return twin


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_logits_equal_those_of_hugging_faces_llama_and_qwen3(qk_norm, tied):
    config = ModelConfig(
        11, 12, 24, 3, 2, position="rope", activation="swiglu", normalization="rmsnorm", biases=False,
        tied_embeddings=tied, qk_norm=qk_norm,
    )  # fmt: skip
    model = randomized(config)
    ids = torch.randint(0, 11, (4, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), as_llama(model)(ids).logits, atol=1e-4, rtol=1e-4)


def weights_of(attention: SelfAttention, x: torch.Tensor) -> torch.Tensor:
    """(B, T, C) -> (B, H, T, T)."""
    query, key, _ = attention.project_qkv(x)
    return attention.attention_weights(query, key)


def literal_weights(attention: SelfAttention, x: torch.Tensor) -> torch.Tensor:
    """Attention weights of one sequence, head by head and position by position: (T, C) -> (H, T, T)."""
    config, time = attention.config, len(x)
    query, key, _ = (
        part.view(time, config.num_heads, config.head_dim) for part in attention.qkv(x).split(24, -1)
    )
    if config.qk_norm:
        query, key = attention.query_norm(query), attention.key_norm(key)
    found = torch.zeros(config.num_heads, time, time)
    for head, row in itertools.product(range(config.num_heads), range(time)):
        scores = []
        for column in range(row + 1):
            q, k = query[row, head], key[column, head]
            if config.position == "rope":
                q = rotate(q[None], *rope_rotation(torch.tensor([row]), config.head_dim))[0]
                k = rotate(k[None], *rope_rotation(torch.tensor([column]), config.head_dim))[0]
            score = q @ k / math.sqrt(config.head_dim)
            if config.position == "alibi":
                score = score - alibi_slopes(config.num_heads)[head] * (row - column)
            scores.append(score)
        found[head, row, : row + 1] = torch.softmax(torch.stack(scores), 0)
    return found


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_attention_equals_its_formula_position_by_position(position, qk_norm):
    attention = randomized(replace(CONFIG, position=position, qk_norm=qk_norm)).blocks[0].attention
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        weights = literal_weights(attention, x)
        value = attention.qkv(x)[:, 48:].view(5, 3, 8)
        gathered = torch.einsum("hij,jhd->ihd", weights, value).reshape(5, 24)
        torch.testing.assert_close(weights_of(attention, x[None])[0], weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            attention(x[None])[0], attention.projection(gathered), atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_fused_kernels_equal_the_plain_formula_and_so_do_their_gradients(
    position, precision, tolerance, dropout
):
    config = replace(CONFIG, position=position, attention_dropout=dropout)
    attention = randomized(config).train().blocks[0].attention

    def run(fused: bool) -> list[torch.Tensor]:
        attention.fused = fused
        attention.zero_grad()
        torch.manual_seed(3)  # of dropout
        x = torch.randn(2, 12, 24, generator=torch.Generator().manual_seed(2), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            out = attention(x)
        assert out.dtype == precision
        out.float().square().mean().backward()
        return [out.detach().float(), x.grad, *(p.grad for p in attention.parameters())]

    for fused, plain in zip(run(True), run(False), strict=True):
        assert (fused - plain).norm() <= tolerance * plain.norm()


def test_a_model_returns_the_attention_weights_of_each_layer():
    model = randomized(CONFIG)
    ids = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(4))
    weights = model.attention_weights(ids)
    assert weights.shape == (2, 2, 3, 7, 7)
    first = model.blocks[0]
    with torch.no_grad():
        x = model.token_embedding(ids) + model.position_embedding.weight[:7]
        torch.testing.assert_close(weights[0], weights_of(first.attention, first.attention_norm(x)))
        x = first(x)
        second = model.blocks[1]
        torch.testing.assert_close(weights[1], weights_of(second.attention, second.attention_norm(x)))


def literal_mlp(mlp: MLP, x: torch.Tensor) -> torch.Tensor:
    hidden = mlp.expand(x)
    if mlp.activation == "swiglu":
        width = hidden.shape[-1] // 2
        hidden = [g / (1 + math.exp(-g)) * v for g, v in zip(hidden[:width], hidden[width:], strict=True)]
    else:
        formula = {
            "relu": lambda z: max(0.0, z),
            "relu2": lambda z: max(0.0, z) ** 2,
            "gelu": lambda z: z / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        }[mlp.activation]
        hidden = [formula(z.item()) for z in hidden]
    return mlp.projection(torch.tensor([float(h) for h in hidden]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_equals_its_formula_number_by_number(activation):
    mlp = randomized(replace(CONFIG, activation=activation)).blocks[0].mlp
    x = torch.randn(24, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), literal_mlp(mlp, x), atol=1e-5, rtol=1e-4)


def test_swiglu_keeps_the_parameter_count():
    relu, swiglu = (
        MiniGPT(ModelConfig(11, activation=activation)).num_parameters for activation in ("relu", "swiglu")
    )
    assert swiglu == pytest.approx(relu, rel=0.005)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_normalization_equals_its_formula(kind):
    layer = normalization(replace(CONFIG, normalization=kind), 6)
    x = torch.randn(6, generator=torch.Generator().manual_seed(7)) * 3 + 1
    layer.weight.data = torch.arange(1.0, 7.0)
    centered = x - x.mean() if kind == "layernorm" else x
    expected = centered / math.sqrt(sum(v.item() ** 2 for v in centered) / 6 + 1e-5) * torch.arange(1.0, 7.0)
    torch.testing.assert_close(layer(x), expected)
    assert hasattr(layer, "bias") == (kind == "layernorm")


EVERY_COMBINATION = [
    dict(zip(("position", "activation", "normalization", "qk_norm", "biases"), values, strict=True))
    for values in itertools.product(POSITIONS, ACTIVATIONS, NORMALIZATIONS, (False, True), (False, True))
]


def combination(values: dict, **more) -> ModelConfig:
    return ModelConfig(11, 12, 24, 3, 2, **values, **more)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_later_character_changes_no_earlier_logit_in_every_combination(precision):
    ids = torch.randint(0, 11, (1, 12), generator=torch.Generator().manual_seed(8))
    for number, values in enumerate(EVERY_COMBINATION):
        model = randomized(
            combination(
                values,
                logit_softcap=5.0 * (number % 2),
                tied_embeddings=number % 3 == 0,
                token_shift=0.5 * (number % 5 > 2),
                ngram_embedding=1 + number % 3,
            )
        )
        for position in [number % 12] if number else range(12):
            changed = ids.clone()
            changed[0, position] = (ids[0, position] + 1) % 11
            with torch.no_grad(), torch.autocast("cpu", enabled=precision == torch.bfloat16):
                before, after = model(ids), model(changed)
            torch.testing.assert_close(after[0, :position], before[0, :position], msg=str(values))
            assert not torch.allclose(after[0, position], before[0, position]), values


def test_mixed_precision_gives_nearly_the_same_logits_in_every_combination():
    ids = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(9))
    for values in EVERY_COMBINATION:
        model = MiniGPT(combination(values), seed=1).eval()
        with torch.no_grad():
            exact = model(ids)
            with torch.autocast("cpu", torch.bfloat16):
                mixed = model(ids)
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed, exact, atol=0.02, rtol=0.02, msg=str(values))


def test_positions_matter_in_every_scheme():
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    for position in POSITIONS:
        # One block without positions sees those before the last as a bag.
        model = randomized(replace(CONFIG, position=position, num_layers=1))
        last, swapped = model(ids)[0, 5], model(ids[:, [2, 4, 0, 1, 3, 5]])[0, 5]
        assert not torch.allclose(last, swapped, atol=1e-3), position


def test_softcap_bounds_the_logits():
    model = randomized(replace(CONFIG, logit_softcap=0.5))
    free = MiniGPT(CONFIG).eval()
    free.load_state_dict(model.state_dict())
    ids = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(10))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), 0.5 * torch.tanh(free(ids) / 0.5))
        assert free(ids).abs().max() > 0.5 > model(ids).abs().max()


def test_zero_initialized_projections_make_blocks_pass_on_what_they_get():
    block = MiniGPT(replace(CONFIG, zero_init_projections=True)).blocks[1]
    x = torch.randn(2, 5, 24)
    assert torch.equal(block(x), x)


def test_gpt2s_initialization_has_its_deviations():
    model = MiniGPT(ModelConfig(300, embed_dim=256, num_layers=8))
    block = model.blocks[3]
    for weight in (model.token_embedding.weight, block.attention.qkv.weight, block.mlp.expand.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    for weight in (block.attention.projection.weight, block.mlp.projection.weight):
        assert weight.std().item() == pytest.approx(0.02 / 4, rel=0.02)
    assert not block.mlp.expand.bias.any()


def test_flops_are_those_counted_by_torch():
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(11, 16, 32, 2, 3)
    model = MiniGPT(config)
    with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 16, dtype=torch.long)).sum().backward()
    assert counter.get_total_flops() == 2 * 16 * model.flops_per_token


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


@pytest.mark.parametrize("value", [0, -1, 2.0, "8", None])
@pytest.mark.parametrize(
    "key", ["vocab_size", "block_size", "embed_dim", "num_heads", "num_layers", "mlp_ratio"]
)
def test_sizes_are_whole_and_positive(key, value):
    with pytest.raises(InputError, match=f"{key} {value!r} must be a whole number from 1 on"):
        ModelConfig(**{"vocab_size": 11, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention_dropout", 1.0), ("mlp_dropout", -0.1), ("logit_softcap", -1), ("logit_softcap", math.nan)],
)
def test_shares_and_limits_are_in_their_range(key, value):
    with pytest.raises(InputError, match=f"{key} {value} must be from 0 to below"):
        ModelConfig(11, **{key: value})


def test_impossible_shapes_and_lengths_are_refused():
    with pytest.raises(InputError, match="not divisible"):
        ModelConfig(11, embed_dim=10, num_heads=3)
    with pytest.raises(InputError, match="a head has 5, an odd number"):
        ModelConfig(11, embed_dim=10, num_heads=2, position="rope")
    with pytest.raises(InputError, match="relu, gelu"):
        ModelConfig(11, activation="sine")
    with pytest.raises(InputError, match="13 characters are more than the model's block_size, 12"):
        MiniGPT(CONFIG)(torch.zeros(1, 13, dtype=torch.long))

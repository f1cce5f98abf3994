"""Generation with a key/value cache against slow twins, which compute everything again for each character."""

import pytest
import torch

from minilm import MiniGPT, ModelConfig
from minilm.generation import kv_cache, naive
from minilm.generation.config import Sampling
from minilm.generation.kv_cache import Decoder
from minilm.model.config import ACTIVATIONS, NORMALIZATIONS, POSITIONS
from minilm.model.positions import alibi_bias

BLOCK = 12
LIMITS = [
    {"temperature": 0.0, "top_k": 0},
    {"temperature": 1.5, "top_k": 0},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
]


def make_model(**settings) -> MiniGPT:
    """A model with every weight random, so that nothing hides behind a zero or a one."""
    model = MiniGPT(
        ModelConfig(**{"vocab_size": 11, "block_size": BLOCK, "embed_dim": 24, "num_heads": 3} | settings)
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def full_recompute(model: MiniGPT, ids: list[int]) -> torch.Tensor:
    """Logits after a text that began as a prompt of at most block_size: () -> (V,).

    With learned and sinusoidal positions by the model itself on the characters that the window then holds;
    with rope and alibi over the whole text, each character seeing the block_size latest up to itself.
    """
    block_size = model.config.block_size
    if model.config.position in ("learned", "sinusoidal"):
        start = 0
        while len(ids) - start > block_size:
            # Full when the character at start + block_size came; it is the last of the new window.
            start += block_size + 1 - max(1, block_size // 2)
        return model(torch.tensor([ids[start:]]))[0, -1]
    x = model.token_embedding(torch.tensor([ids]))
    positions = torch.arange(len(ids))
    distance = positions[:, None] - positions
    bias = torch.where((distance >= 0) & (distance < block_size), 0.0, -torch.inf)
    for block in model.blocks:
        query, key, value = block.attention.project_qkv(block.attention_norm(x))
        scores = query @ key.transpose(2, 3) / model.config.head_dim**0.5 + bias
        if model.config.position == "alibi":
            scores = scores + alibi_bias(block.attention.slopes, positions, positions)
        gathered = scores.softmax(-1) @ value
        x = x + block.attention.projection(gathered.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norm(x))
    return model.unembed(x)[0, -1]


@torch.inference_mode()
def require_equal(model: MiniGPT, prompt: list[int], length: int) -> None:
    """The decoder's logits, in each of three texts, are the twin's within 1e-4, and so is the most likely."""
    decoder = Decoder(model, 3)
    logits = decoder.prefill(torch.tensor(prompt))
    ids = prompt[-model.config.block_size :]
    for _ in range(length):
        expected = full_recompute(model, ids)
        torch.testing.assert_close(logits, expected.expand(3, -1), atol=1e-4, rtol=1e-4)
        assert set(logits.argmax(-1).tolist()) == {int(expected.argmax())}
        ids.append(int(expected.argmax()))
        logits = decoder.step(torch.tensor([ids[-1]] * 3))


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("position", POSITIONS)
def test_ids_are_those_of_the_textbook_loop(position, activation, normalization, qk_norm):
    model = make_model(position=position, activation=activation, normalization=normalization, qk_norm=qk_norm)
    prompt = torch.tensor([3, 1, 4])
    for seed, limits in enumerate(LIMITS):
        # The last one is drawn when the window is full.
        sampling = Sampling(**limits, max_new_tokens=BLOCK - len(prompt) + 1, seed=seed)
        expected = list(naive.generate_ids(model, prompt, sampling))
        assert len(expected) == sampling.max_new_tokens
        assert list(kv_cache.generate_ids(model, prompt, sampling)) == expected


@pytest.mark.parametrize("prompt_length", [1, 5, BLOCK, BLOCK + 7])
@pytest.mark.parametrize("position", POSITIONS)
def test_logits_are_those_of_the_twin_across_the_windows_edge(position, prompt_length):
    require_equal(make_model(position=position), [1 + i % 10 for i in range(prompt_length)], 4 * BLOCK)


@pytest.mark.parametrize("block_size", [1, 2, 3])
@pytest.mark.parametrize("position", POSITIONS)
def test_the_smallest_windows(position, block_size):
    require_equal(make_model(position=position, block_size=block_size), [3, 1], 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"activation": "gelu", "qk_norm": True},
        {"activation": "relu2", "biases": False, "num_layers": 1},
        {"activation": "swiglu", "normalization": "rmsnorm", "biases": False, "tied_embeddings": False},
        {"logit_softcap": 2.0, "normalization": "rmsnorm", "qk_norm": True, "num_layers": 3},
    ],
)
@pytest.mark.parametrize("position", POSITIONS)
def test_every_other_setting(position, settings):
    require_equal(make_model(position=position, **settings), [1, 2, 3], 2 * BLOCK + 3)


@torch.inference_mode()
def test_texts_of_a_batch_do_not_meet():
    model = make_model()
    decoder = Decoder(model, 2)
    decoder.prefill(torch.tensor([1]))
    texts = [[1], [1]]
    for step in range(2 * BLOCK):
        new = [1 + step % 10, 1 + (7 * step + 3) % 10]
        logits = decoder.step(torch.tensor(new))
        for row, text in enumerate(texts):
            text.append(new[row])
            torch.testing.assert_close(logits[row], full_recompute(model, text), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_second_prefill_begins_anew():
    model = make_model(position="rope")
    decoder, fresh = Decoder(model, 1), Decoder(model, 1)
    decoder.prefill(torch.tensor([1, 2, 3]))
    for _ in range(3 * BLOCK):
        decoder.step(torch.tensor([4]))
    torch.testing.assert_close(decoder.prefill(torch.tensor([5, 6])), fresh.prefill(torch.tensor([5, 6])))


@torch.inference_mode()
def test_far_out_positions_are_as_exact_as_the_first():
    """Rope knows distances only, so a text that repeats itself gives the same logits a million on."""
    decoder = Decoder(make_model(position="rope", num_layers=1), 1)
    logits = {}
    for start in (0, 10**7):
        decoder.prefill(torch.tensor([1]))
        decoder.dropped = start  # counts from when the window slides for the first time
        for new in range(4 * BLOCK):
            logits[start] = decoder.step(torch.tensor([1 + new % 10]))
    torch.testing.assert_close(logits[0], logits[10**7], atol=1e-4, rtol=1e-4)

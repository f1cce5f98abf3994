"""Token shift and n-gram embeddings against slow twins, and in generation."""

import itertools
from dataclasses import replace

import pytest
import torch

from helpers.models import randomized
from minilm import MiniGPT, ModelConfig
from minilm.errors import InputError
from minilm.generation import kv_cache, naive
from minilm.generation.config import Sampling
from minilm.generation.kv_cache import Decoder
from minilm.model.config import ACTIVATIONS, NORMALIZATIONS, POSITIONS
from minilm.model.local_context import NGramEmbedding, token_shift

CONFIG = ModelConfig(11, 12, 24, 3, 2, token_shift=0.5, ngram_embedding=3, ngram_rows=200)


def test_token_shift_takes_the_first_channels_from_the_position_before():
    x = torch.randn(2, 5, 6)
    shifted = token_shift(x, 2)
    for text, time, channel in itertools.product(range(2), range(5), range(6)):
        source = time if channel >= 2 else time - 1
        assert shifted[text, time, channel] == (x[text, source, channel] if source >= 0 else 0)


def literal_row(ngram: list[int], vocab_size: int, rows: int) -> int:
    """An n-gram's row in its table, in Python's unbounded integers."""
    prime = 2654435761
    number = sum(digit * (vocab_size**place % prime) for place, digit in enumerate(reversed(ngram)))
    if vocab_size ** len(ngram) <= rows:
        return number
    return number * prime % 2**32 * rows // 2**32


@pytest.mark.parametrize(("vocab_size", "longest", "rows"), [(11, 2, 121), (11, 4, 200), (60_000, 8, 1000)])
def test_ngram_embedding_is_the_sum_of_the_tables_rows(vocab_size, longest, rows):
    embedding = NGramEmbedding(vocab_size, 5, longest, rows)
    ids = torch.randint(0, vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = embedding(ids)
    for text, time in itertools.product(range(2), range(9)):
        before = [0] * longest + ids[text, : time + 1].tolist()
        expected, offset = torch.zeros(5), 0
        for n in range(2, longest + 1):
            row = literal_row(before[-n:], vocab_size, rows)
            expected += embedding.tables.weight[offset + row].detach()
            offset += min(vocab_size**n, rows)
        torch.testing.assert_close(found[text, time], expected)
    assert len(embedding.tables.weight) == offset


def test_hashed_ngrams_spread_evenly_over_their_rows():
    rows = 64
    ngrams = torch.cartesian_prod(*[torch.arange(16)] * 3)  # 64 times as many, and V and rows share a factor
    embedding = NGramEmbedding(16, 1, 3, rows)
    embedding.tables.weight.data = torch.arange(2.0 * rows)[:, None]
    with torch.no_grad():
        of_pairs = embedding.tables.weight[[literal_row(n[1:].tolist(), 16, rows) for n in ngrams]]
        found = embedding.embed(ngrams[:, None]).flatten() - of_pairs.flatten() - rows
    counts = torch.bincount(found.long(), minlength=rows)
    assert counts.min() >= 48
    assert counts.max() <= 80


@pytest.mark.parametrize("vocab_size", [256, 282, 2048])
def test_hashed_ngrams_depend_on_their_oldest_character(vocab_size):
    embedding = NGramEmbedding(vocab_size, 4, 6, 2**16)
    windows = torch.zeros(1, 100, 6, dtype=torch.long)
    windows[0, :, 0] = torch.arange(100)
    with torch.no_grad():
        assert len(embedding.embed(windows)[0].unique(dim=0)) > 95


@pytest.mark.parametrize("changes", [{"ngram_embedding": 1}, {"token_shift": 0.0}, {}])
def test_generation_is_that_of_the_textbook_loop_in_every_combination(changes):
    prompt = torch.tensor([3, 1, 4])
    for position, activation, norm in itertools.product(POSITIONS, ACTIVATIONS, NORMALIZATIONS):
        config = replace(CONFIG, position=position, activation=activation, normalization=norm, **changes)
        model = randomized(config)
        sampling = Sampling(temperature=1.0, max_new_tokens=10, seed=2)
        expected = list(naive.generate_ids(model, prompt, sampling))
        assert list(kv_cache.generate_ids(model, prompt, sampling)) == expected, config


@torch.inference_mode()
def test_a_window_that_is_filled_again_begins_as_a_text_does():
    model = randomized(replace(CONFIG, position="learned"))
    ids = torch.randint(1, 11, (2, 13), generator=torch.Generator().manual_seed(3))
    decoder = Decoder(model, 2)
    decoder.prefill(ids[0, :1])
    for time in range(12):
        logits = decoder.step(ids[:, time])
    torch.testing.assert_close(logits, model(ids[:, 6:12])[:, -1], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_window_that_slides_goes_on_with_the_characters_before_it():
    # One layer without attention's outputs: what the last logits depend on is local context alone.
    model = randomized(replace(CONFIG, position="rope", num_layers=1))
    model.blocks[0].attention.projection.weight.zero_()
    model.blocks[0].attention.projection.bias.zero_()
    ids = torch.randint(1, 11, (1, 40), generator=torch.Generator().manual_seed(3))
    decoder = Decoder(model, 1)
    logits = decoder.prefill(ids[0, :1])
    for time in range(1, 40):
        logits = decoder.step(ids[:, time])
        if time > 3:
            expected = model(ids[:, time - 4 : time + 1])[:, -1]
            torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_the_classic_model_has_none_of_it():
    assert not any("ngram" in name for name in MiniGPT(ModelConfig(11)).state_dict())
    assert "ngram_embedding.tables.weight" in MiniGPT(CONFIG).state_dict()


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_the_shifted_share_is_below_one(value):
    with pytest.raises(InputError, match=f"token_shift {value} must be from 0 to below 1"):
        ModelConfig(11, token_shift=value)

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from minilm import CharTokenizer
from minilm.errors import InputError
from minilm.evaluation import ngram
from minilm.evaluation.ngram import NGramModel, ngram_losses

TRAIN = "the quick brown fox jumps over the lazy dog. the dog sleeps, and the fox is over it."
TOKENIZER = CharTokenizer.from_text(TRAIN + "Z")  # Z is in the vocabulary, but not in the text
VOCAB_SIZE = TOKENIZER.vocab_size


def literal_probability(train, context, character, vocab_size):
    """P(character | context) with all of the context, straight from the definition."""
    if context is None:
        return 1 / vocab_size
    shorter = context[1:] if context else None
    following = Counter(
        train[i + len(context)]
        for i in range(len(train) - len(context))
        if train[i : i + len(context)] == context
    )
    lower = literal_probability(train, shorter, character, vocab_size)
    if not following:
        return lower
    return (following[character] + len(following) * lower) / (following.total() + len(following))


@pytest.mark.parametrize("train", [TRAIN, "aab", "a", ""])
@pytest.mark.parametrize("test", ["the fox over the Zebra\u20ac, dog. it", "it", "aabaab.", "qqqqqqqq"])
def test_losses_equal_a_literal_count(train, test):
    order = 7
    ids = TOKENIZER.encode(train), TOKENIZER.encode(test)
    nats = defaultdict(float)
    for place in range(1, len(test)):
        for k in range(1, order + 1):
            context = list(ids[1][max(0, place - k + 1) : place])
            probability = literal_probability(list(ids[0]), context, ids[1][place], VOCAB_SIZE)
            nats[k] -= math.log(probability)
    wanted = [nats[k] / (len(test) - 1) for k in range(1, order + 1)]
    assert ngram_losses(*ids, VOCAB_SIZE, order) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    "context", ["", "t", "the ", " the", "Zq", "t is over it.", "over it.", "\u20ac\u20ac"]
)
def test_probabilities_sum_to_one(context):
    model = NGramModel(TOKENIZER.encode(TRAIN), VOCAB_SIZE, order=5)
    before = TOKENIZER.encode(context)
    sums = sum(model.probabilities(np.append(before, id_))[:, -1] for id_ in range(VOCAB_SIZE))
    assert sums == pytest.approx(np.ones(5))


def test_order_one_is_the_share_in_the_training_split():
    probabilities = NGramModel(np.array([1, 1, 1, 2], np.uint8), vocab_size=4, order=1).probabilities(
        np.array([1, 2, 3], np.uint8)
    )
    # (times + 2 types / 4 ids) / (4 characters + 2 types)
    assert probabilities.tolist() == [pytest.approx([3.5 / 6, 1.5 / 6, 0.5 / 6])]


def test_a_repetitive_text_is_nearly_free():
    text = np.tile(np.arange(8, dtype=np.uint8), 500)
    losses = ngram_losses(text, text[:800], vocab_size=8, order=4)
    assert losses[0] == pytest.approx(math.log(8), rel=1e-3)
    assert max(losses[1:]) < 0.005


def test_a_test_split_of_several_pieces():
    train, test = TOKENIZER.encode(TRAIN), TOKENIZER.encode(TRAIN * 7000)  # of more than two pieces
    probabilities = NGramModel(train, VOCAB_SIZE, 4).probabilities(test)[:, 1:]
    wanted = -np.log(probabilities).mean(1)
    assert ngram_losses(train, test, VOCAB_SIZE, 4) == pytest.approx(wanted, rel=1e-12)


def test_a_large_vocabulary_does_not_overflow():
    vocab_size = 65_000
    text = np.random.default_rng(0).integers(vocab_size - 300, vocab_size, 2000).astype(np.uint16)
    few = text - (vocab_size - 300)
    uniform_share = [ngram_losses(text, text, vocab_size, 6), ngram_losses(few, few, vocab_size, 6)]
    assert uniform_share[0] == pytest.approx(uniform_share[1], rel=1e-12)


def test_counts_the_beginning_of_a_file_on_disk(tmp_path, monkeypatch):
    ids, test = TOKENIZER.encode(TRAIN), TOKENIZER.encode("the brown dog")
    np.save(tmp_path / "train.npy", ids)
    wanted = ngram_losses(ids[:50], test, VOCAB_SIZE)
    monkeypatch.setattr(ngram, "MOST_CHARACTERS", 50)
    assert ngram_losses(np.load(tmp_path / "train.npy", mmap_mode="r"), test, VOCAB_SIZE) == wanted


def test_a_test_split_of_one_character_is_refused():
    with pytest.raises(InputError, match="at least 2 characters"):
        ngram_losses(TOKENIZER.encode(TRAIN), TOKENIZER.encode("t"), VOCAB_SIZE, 2)

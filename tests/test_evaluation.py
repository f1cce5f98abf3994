import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minilm import CharTokenizer
from minilm.errors import InputError
from minilm.evaluation import count_words, evaluate

TEXT = "the lazy dog jumps over the quick brown fox.\nover and over the fox jumps! "


@pytest.mark.parametrize("context", [0, 5, 8, 15])
def test_loss_equals_one_character_at_a_time(tiny_model, context):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    ids = torch.from_numpy(tokens.astype("int64"))
    stride, nats, correct = 16 - context, 0.0, 0
    for target in range(1, len(ids)):
        # The window that scores this character: the first to end at or after it.
        end = min(16 if target <= 16 else 16 + math.ceil((target - 16) / stride) * stride, len(ids) - 1)
        start = max(0, end - 16)
        with torch.no_grad():
            logits = model(ids[None, start:target])[0, -1]
        nats += F.cross_entropy(logits, ids[target]).item()
        correct += int(logits.argmax() == ids[target])
    found = evaluate(model, tokenizer, tokens, context, batch_size=3)
    predictions = len(ids) - 1
    assert found.loss == pytest.approx(nats / predictions, rel=1e-5)
    assert found.bits_per_char == pytest.approx(found.loss / math.log(2))
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.word_perplexity == pytest.approx(math.exp(nats / len(TEXT.split())), rel=1e-3)
    assert found.accuracy == correct / predictions


def test_by_hand_for_a_model_that_knows_nothing(tiny_model):
    model, tokenizer = tiny_model
    from minilm import MiniGPT

    blank = MiniGPT(model.config).eval()
    blank.token_embedding.weight.data.zero_()
    found = evaluate(blank, tokenizer, tokenizer.encode("the fox # and dog"))
    assert found.loss == pytest.approx(math.log(tokenizer.vocab_size))
    assert found.perplexity == pytest.approx(tokenizer.vocab_size)
    assert found.unknown_char_rate == pytest.approx(1 / 17)


def test_no_context_given_means_half_of_the_window(tiny_model):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    assert evaluate(model, tokenizer, tokens) == evaluate(model, tokenizer, tokens, context=8)


@pytest.mark.parametrize("text", ["", " ", "a", " a", "a ", "a b\n\tc  d", "  \u3000x\u00a0y "])
def test_words_are_those_of_split(text):
    tokenizer = CharTokenizer.from_text("abcdxy \n\t\u3000\u00a0")
    assert count_words(tokenizer.encode(text), tokenizer) == len(text.split())


def test_what_cannot_be_evaluated(tiny_model):
    model, tokenizer = tiny_model
    with pytest.raises(InputError, match="at least 2 characters"):
        evaluate(model, tokenizer, np.array([1], np.uint8))
    with pytest.raises(InputError, match="eval_context: 16 must be below the model's block_size, 16"):
        evaluate(model, tokenizer, tokenizer.encode(TEXT), context=16)

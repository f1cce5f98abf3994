import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from minilm import CharTokenizer, MiniGPT, ModelConfig
from minilm.errors import InputError
from minilm.evaluation.scoring import count_words, evaluate, kind_of, surprisals

TEXT = "the lazy dog jumps over the quick brown fox.\nover and over the fox jumps! "


def one_at_a_time(model, ids, context):
    """Logits for each character but the first, (tokens - 1, V), and how many come before it in its window."""
    stride, logits, lengths = 16 - context, [], []
    for target in range(1, len(ids)):
        # The window that scores this character: the first to end at or after it.
        end = min(16 if target <= 16 else 16 + math.ceil((target - 16) / stride) * stride, len(ids) - 1)
        start = max(0, end - 16)
        with torch.no_grad():
            logits.append(model(ids[None, start:target])[0, -1])
        lengths.append(target - start)
    return torch.stack(logits), lengths


@pytest.mark.parametrize("context", [0, 5, 8, 15])
def test_metrics_equal_one_character_at_a_time(tiny_model, context):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    ids = torch.from_numpy(tokens.astype("int64"))
    logits, _ = one_at_a_time(model, ids, context)
    nats = F.cross_entropy(logits, ids[1:], reduction="none").tolist()
    right = (logits.argmax(-1) == ids[1:]).tolist()
    near = [int(id_) in row.topk(5).indices.tolist() for row, id_ in zip(logits, ids[1:], strict=True)]
    found = evaluate(model, tokenizer, tokens, context, batch_size=3)
    predictions = len(ids) - 1
    assert found.loss == pytest.approx(sum(nats) / predictions, rel=1e-5)
    assert found.bits_per_char == pytest.approx(found.loss / math.log(2))
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.word_perplexity == pytest.approx(math.exp(sum(nats) / len(TEXT.split())), rel=1e-3)
    assert found.accuracy == sum(right) / predictions
    assert found.top5_accuracy == sum(near) / predictions

    kinds = [
        {" ": "space", "\n": "space", ".": "punctuation", "!": "other"}.get(c, "letter") for c in TEXT[1:]
    ]
    assert "!" not in tokenizer.characters
    assert [row.kind for row in found.by_kind] == ["letter", "space", "punctuation", "other"]
    for row in found.by_kind:
        members = [place for place, kind in enumerate(kinds) if kind == row.kind]
        assert row.characters == len(members)
        assert row.share == len(members) / predictions
        assert row.loss == pytest.approx(sum(nats[place] for place in members) / len(members), rel=1e-5)
        assert row.accuracy == sum(right[place] for place in members) / len(members)
    assert sum(row.loss * row.share for row in found.by_kind) == pytest.approx(found.loss)


@pytest.mark.parametrize(("text", "width"), [(TEXT, 16), ("the fox", 6)])
def test_loss_by_position_equals_a_loop_over_the_windows(tiny_model, text, width):
    model, tokenizer = tiny_model
    ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))
    ends = sorted({min(end, len(ids) - 1) for end in range(width, len(ids) + 11, 11)})  # 16 - 5 apart
    rows = evaluate(model, tokenizer, tokenizer.encode(text), context=5, batch_size=2).by_position
    assert [row.context for row in rows] == list(range(1, width + 1))
    for row in rows:
        nats = []
        for end in ends:
            start = end - width
            with torch.no_grad():
                logits = model(ids[None, start : start + row.context])[0, -1]
            nats.append(F.cross_entropy(logits, ids[start + row.context]).item())
        assert row.characters == len(ends)
        assert row.loss == pytest.approx(sum(nats) / len(nats), rel=1e-5)
        assert row.deviation == pytest.approx(np.std(nats), abs=1e-5)


class Fixed(MiniGPT):
    """After character i it expects i + 1 with the probability that is given for it, the others equally."""

    def __init__(self, config, confidence):
        super().__init__(config)
        self.confidence = confidence

    def forward(self, ids):
        confidence = torch.tensor([self.confidence[int(id_)] for id_ in ids.flatten()]).view(ids.shape)
        others = (1 - confidence) / (self.config.vocab_size - 1)
        expected = F.one_hot(ids + 1, self.config.vocab_size).bool()
        return torch.where(expected, confidence[..., None], others[..., None]).log()


def test_calibration_by_hand(tiny_model):
    model, tokenizer = tiny_model
    # Ids 1 to 4 guess 2 to 5. Bins are 1/15 wide: 0.5 and 0.52 share (7/15, 8/15], 0.9 and 0.7 are alone.
    fixed = Fixed(model.config, {1: 0.5, 2: 0.52, 3: 0.9, 4: 0.7}).eval()
    tokens = np.array([1, 2, 2, 3, 4, 1], np.uint8)  # right: 1-2, 2-3, 3-4; wrong: 2-2, 4-1
    found = evaluate(fixed, tokenizer, tokens)
    assert [tuple(row) for row in found.reliability] == [
        pytest.approx(((0.5 + 0.52 + 0.52) / 3, 2 / 3, 3, 7 / 15, 8 / 15)),
        pytest.approx((0.7, 0, 1, 10 / 15, 11 / 15)),
        pytest.approx((0.9, 1, 1, 13 / 15, 14 / 15)),
    ]
    assert found.accuracy == 3 / 5
    by_hand = (abs(0.5 + 0.52 + 0.52 - 2) + abs(0.7 - 0) + abs(0.9 - 1)) / 5
    assert found.calibration_error == pytest.approx(by_hand, rel=1e-5)


def test_confidence_of_one_is_in_the_last_bin(tiny_model):
    model, tokenizer = tiny_model
    certain = Fixed(model.config, {1: 1.0, 2: 1.0}).eval()
    found = evaluate(certain, tokenizer, np.array([1, 2, 3], np.uint8))
    assert [tuple(row) for row in found.reliability] == [(1, 1, 2, 14 / 15, 1)]
    assert found.loss == found.calibration_error == 0


def test_by_hand_for_a_model_that_knows_nothing(tiny_model):
    model, tokenizer = tiny_model
    blank = MiniGPT(model.config).eval()
    blank.token_embedding.weight.data.zero_()
    found = evaluate(blank, tokenizer, tokenizer.encode("the fox # and dog"))
    assert found.loss == pytest.approx(math.log(tokenizer.vocab_size))
    assert found.perplexity == pytest.approx(tokenizer.vocab_size)
    assert found.unknown_char_rate == pytest.approx(1 / 17)
    # It is as sure of each guess as one id in the vocabulary, and the guess is always the same.
    (row,) = found.reliability
    assert row.confidence == pytest.approx(1 / tokenizer.vocab_size)
    assert row.characters == 16
    assert found.calibration_error == pytest.approx(abs(1 / tokenizer.vocab_size - found.accuracy))
    assert [row.kind for row in found.by_kind] == ["letter", "space", "other"]
    assert all(row.loss == pytest.approx(found.loss) for row in (*found.by_kind, *found.by_position))


def test_a_vocabulary_smaller_than_five():
    tokenizer = CharTokenizer.from_text("ab")
    small = MiniGPT(ModelConfig(tokenizer.vocab_size, block_size=8, embed_dim=8, num_heads=1)).eval()
    assert evaluate(small, tokenizer, tokenizer.encode("abba")).top5_accuracy == 1
    assert surprisals(small, tokenizer.encode("abba"), None, 1, 3).candidates.shape == (3, 3)


def test_metrics_are_the_means_without_the_tables(tiny_model):
    model, tokenizer = tiny_model
    found = evaluate(model, tokenizer, tokenizer.encode(TEXT))
    assert list(found.metrics()) == [
        "loss",
        "bits_per_char",
        "perplexity",
        "word_perplexity",
        "accuracy",
        "top5_accuracy",
        "calibration_error",
        "unknown_char_rate",
    ]
    assert found.metrics()["loss"] == found.loss


def test_no_context_given_means_half_of_the_window(tiny_model):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    assert evaluate(model, tokenizer, tokens) == evaluate(model, tokenizer, tokens, context=8)


def test_bfloat16_is_close(tiny_model):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    exact = evaluate(model, tokenizer, tokens)
    low = evaluate(model, tokenizer, tokens, precision=torch.bfloat16)
    assert low.loss != exact.loss
    assert low.loss == pytest.approx(exact.loss, rel=0.01)
    assert low.calibration_error == pytest.approx(exact.calibration_error, abs=0.02)


@pytest.mark.parametrize(
    ("character", "kind"),
    [
        *[(c, "letter") for c in "aÄßж中ª"],
        *[(c, "digit") for c in "0٣½Ⅷ"],
        *[(c, "space") for c in " \n\t\u00a0\u3000\u2028\x1c"],
        *[(c, "punctuation") for c in ".!-_(\u201d$+^\u20ac"],
        *[(c, "other") for c in "\x00\u0301\u200b\ue000"],
    ],
)
def test_kinds_of_characters(character, kind):
    assert kind_of(character) == kind


@pytest.mark.parametrize(("first", "count"), [(1, 4), (1, 1000), (9, 1), (30, 40), (70, 100), (73, 1)])
@pytest.mark.parametrize("context", [0, 5, None])
def test_surprisals_equal_one_character_at_a_time(tiny_model, first, count, context):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    ids = torch.from_numpy(tokens.astype("int64"))
    found = surprisals(model, tokens, context, first, count, candidates=3)
    context = 8 if context is None else context
    start = max(0, first - max(1, context))
    logits, lengths = one_at_a_time(model, ids[start : first + count], context)
    logits, lengths = logits[first - start - 1 :], lengths[first - start - 1 :]
    targets = ids[first : first + count]
    assert len(found.bits) == len(targets) == len(found.candidates) == min(count, len(ids) - first)
    for place, (row, length) in enumerate(zip(logits, lengths, strict=True)):
        assert length >= min(context, first + place)
        probabilities = row.softmax(-1)
        assert found.bits[place] == pytest.approx(-math.log2(probabilities[targets[place]]), rel=1e-4)
        best = probabilities.topk(3)
        assert found.candidates[place].tolist() == best.indices.tolist()
        assert found.probabilities[place] == pytest.approx(best.values.numpy(), rel=1e-4)


def test_surprisals_of_a_whole_text_add_up_to_its_loss(tiny_model):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    found = surprisals(model, tokens, context=5, first=1, count=len(tokens))
    assert found.bits.mean() == pytest.approx(evaluate(model, tokenizer, tokens, context=5).bits_per_char)


@pytest.mark.parametrize("text", ["", " ", "a", " a", "a ", "a b\n\tc  d", "  \u3000x\u00a0y "])
def test_words_are_those_of_split(text):
    tokenizer = CharTokenizer.from_text("abcdxy \n\t\u3000\u00a0")
    assert count_words(tokenizer.encode(text), tokenizer) == len(text.split())


def test_what_cannot_be_evaluated(tiny_model):
    model, tokenizer = tiny_model
    tokens = tokenizer.encode(TEXT)
    with pytest.raises(InputError, match="at least 2 characters"):
        evaluate(model, tokenizer, np.array([1], np.uint8))
    with pytest.raises(InputError, match="eval_context: 16 must be below the model's block_size, 16"):
        evaluate(model, tokenizer, tokens, context=16)
    with pytest.raises(InputError, match="eval_context: 16 must be below"):
        surprisals(model, tokens, context=16, first=1, count=1)
    for first in (0, len(tokens)):
        with pytest.raises(InputError, match=f"first: {first} must be from 1 to"):
            surprisals(model, tokens, context=8, first=first, count=1)

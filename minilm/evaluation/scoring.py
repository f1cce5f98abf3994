"""How well a model predicts a split: every character of it is scored, not a sample."""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minilm.data.batches import scoring_batches
from minilm.data.tokenizer import UNKNOWN_ID, CharTokenizer, Ids
from minilm.errors import InputError
from minilm.model.cpu_kernels import keep_freed_memory
from minilm.model.gpt import MiniGPT

KINDS = ("letter", "digit", "space", "punctuation", "other")
BINS = 15  # of confidence
_MOST_NATS = 709.7  # e to more of them, as for one very long word, is no float
_WINDOWS_AT_ONCE = 64  # fewer leave the cores waiting for each other more often
_LOGITS_AT_ONCE = 1 << 24  # fewer windows where the vocabulary or the window is large; 64 MB in float32

Floats = npt.NDArray[np.floating]


class PositionRow(NamedTuple):
    """The loss with so much context."""

    context: int  # characters before the predicted one in its window
    loss: float  # nats per character
    characters: int
    deviation: float  # standard deviation of the characters' losses, in nats


class KindRow(NamedTuple):
    """The loss and accuracy on one kind of character."""

    kind: str  # one of KINDS
    loss: float  # nats per character
    accuracy: float
    characters: int
    share: float  # of the scored characters


class ReliabilityRow(NamedTuple):
    """One bin of a reliability diagram: predictions of about the same confidence."""

    confidence: float  # probability of the most likely character, mean in the bin
    accuracy: float
    characters: int
    lower: float  # the bin is (lower, upper]
    upper: float


@dataclass(frozen=True)
class Evaluation:
    """Means over every character of the split but the first, which has no context; and tables.

    calibration_error is the distance between confidence and accuracy, the mean over bins of equal width
    weighted by their characters ("On Calibration of Modern Neural Networks", Guo et al., 2017).

    The rows of by_kind, and those of reliability, divide the same characters among them; a kind or bin
    without any has no row. by_position counts each prediction of each window, also those that are only
    context for the others, so that it begins at one character of context. Windows overlap: its characters
    add up to more than the split's.
    """

    loss: float  # nats per character
    bits_per_char: float
    perplexity: float  # per character
    word_perplexity: float  # per word between white space, from the nats of the whole split
    accuracy: float  # share of characters that were the most likely one
    top5_accuracy: float  # share of characters with at most four more probable ones
    calibration_error: float
    unknown_char_rate: float  # share of characters that the vocabulary lacks
    by_position: list[PositionRow]
    by_kind: list[KindRow]
    reliability: list[ReliabilityRow]

    def metrics(self) -> dict[str, float]:
        """The means by name, without the tables."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}


@torch.inference_mode()
def evaluate(
    model: MiniGPT,
    tokenizer: CharTokenizer,
    tokens: Ids,
    context: int | None = None,
    batch_size: int = _WINDOWS_AT_ONCE,
    precision: torch.dtype = torch.float32,
) -> Evaluation:
    """Score every character of `tokens`, (tokens,), once, each with at least `context` characters before it.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        tokens: at least 2, else InputError.
        context: less than block_size, else InputError; None is half of it. More helps but is slower.
        batch_size: windows at once at most; changes the result by rounding only.
        precision: of the matrix products; what comes after the logits is in float32, and sums in float64.
    """
    keep_freed_memory()
    names = ["other", *map(kind_of, tokenizer.characters)]  # id 0 is the unknown character
    kinds = np.array([KINDS.index(name) for name in names])  # of each id, (V,)
    # Rows of sums: a sum's error stays below that of its terms.
    positions = min(model.config.block_size, max(0, len(tokens) - 1))
    by_position = np.zeros((3, positions))  # characters, nats, squared nats
    by_kind = np.zeros((4, len(KINDS)))  # characters, nats, correct, with at most four more probable ones
    by_confidence = np.zeros((3, BINS))  # characters, confidence, correct
    for log_probs, targets, scored in _predictions(model, tokens, context, batch_size, precision):
        nats = -_of_targets(log_probs, targets)  # (batch, time)
        log_probs, targets = log_probs[scored], targets[scored]  # (scored, V) and (scored,)
        confidence, guesses = log_probs.max(-1)
        correct = guesses == targets
        near = (log_probs > -nats[scored][:, None]).sum(-1) <= 4
        places = np.broadcast_to(np.arange(nats.shape[1]), nats.shape)
        by_position += _sums(places.ravel(), positions, nats.flatten(), nats.double().square().flatten())
        by_kind += _sums(kinds[targets.cpu().numpy()], len(KINDS), nats[scored], correct, near)
        confidence = confidence.exp()
        # A probability on an edge belongs to the bin below it; a device's rounding may get past 1.
        bins = np.ceil(confidence.cpu().numpy().astype(np.float64) * BINS).astype(np.int64) - 1
        by_confidence += _sums(bins.clip(0, BINS - 1), BINS, confidence, correct)
    predictions, total_nats, total_correct, total_near = by_kind.sum(1).tolist()
    _, confidence_sums, correct_sums = by_confidence
    loss = total_nats / predictions
    return Evaluation(
        loss=loss,
        bits_per_char=loss / math.log(2),
        perplexity=math.exp(min(loss, _MOST_NATS)),
        word_perplexity=math.exp(min(total_nats / max(1, count_words(tokens, tokenizer)), _MOST_NATS)),
        accuracy=total_correct / predictions,
        top5_accuracy=total_near / predictions,
        calibration_error=float(np.abs(confidence_sums - correct_sums).sum()) / predictions,
        unknown_char_rate=float(np.count_nonzero(tokens == UNKNOWN_ID)) / len(tokens),
        by_position=[
            PositionRow(
                context, nats / count, int(count), max(0, squares / count - (nats / count) ** 2) ** 0.5
            )
            for context, (count, nats, squares) in enumerate(by_position.T.tolist(), start=1)
        ],
        by_kind=[
            KindRow(kind, nats / count, correct / count, int(count), count / predictions)
            for kind, (count, nats, correct, _) in zip(KINDS, by_kind.T.tolist(), strict=True)
            if count
        ],
        reliability=[
            ReliabilityRow(confidence / count, correct / count, int(count), i / BINS, (i + 1) / BINS)
            for i, (count, confidence, correct) in enumerate(by_confidence.T.tolist())
            if count
        ],
    )


class Surprisals(NamedTuple):
    """What the model expected at each character of a passage, and the surprisal of the one that came."""

    bits: Floats  # (count,), -log2 of the probability of the character that came
    candidates: npt.NDArray[np.int64]  # (count, candidates), the most likely ids, in descending order
    probabilities: Floats  # (count, candidates), theirs


@torch.inference_mode()
def surprisals(
    model: MiniGPT, tokens: Ids, context: int | None, first: int, count: int, candidates: int = 5
) -> Surprisals:
    """The surprisal of `count` of the tokens, (tokens,), from index `first` on, or of as many as there are.

    Nothing comes before character 0: InputError unless `first` is in [1, tokens). The model is in evaluation
    mode and `context` as in `evaluate`; `candidates` are limited by the vocabulary.
    """
    if not 1 <= first < len(tokens):
        raise InputError(f"first: {first} must be from 1 to {len(tokens) - 1}")
    context = _require_context(model, context)
    start = max(0, first - max(1, context))
    skipped = first - start - 1  # characters that are scored only since the windows hold them
    passage, found = tokens[start : first + count], []
    for log_probs, targets, scored in _predictions(model, passage, context, _WINDOWS_AT_ONCE, torch.float32):
        log_probs, targets = log_probs[scored], targets[scored]
        likely = log_probs.topk(min(candidates, log_probs.shape[-1]))
        bits = -_of_targets(log_probs, targets) / math.log(2)
        found.append((bits, likely.indices, likely.values.exp()))
    return Surprisals(*(torch.cat(parts)[skipped:].cpu().numpy() for parts in zip(*found, strict=True)))


def count_words(tokens: Ids, tokenizer: CharTokenizer) -> int:
    """Words between white space, as `str.split` counts them."""
    is_space = np.array([False, *(character.isspace() for character in tokenizer.characters)])[tokens]
    starts_word = ~is_space & np.concatenate([[True], is_space[:-1]])
    return int(starts_word.sum())


def kind_of(character: str) -> str:
    """Which of KINDS a character is, by its general category in Unicode."""
    if character.isspace():
        return "space"
    major = unicodedata.category(character)[0]
    return {"L": "letter", "N": "digit", "P": "punctuation", "S": "punctuation"}.get(major, "other")


def _require_context(model: MiniGPT, context: int | None) -> int:
    block_size = model.config.block_size
    context = block_size // 2 if context is None else context
    if not 0 <= context < block_size:
        raise InputError(f"eval_context: {context} must be below the model's block_size, {block_size}")
    return context


def _predictions(
    model: MiniGPT, tokens: Ids, context: int | None, batch_size: int, precision: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Log probabilities (batch, time, V), targets (batch, time), and which of them to score (batch, time)."""
    if len(tokens) < 2:
        raise InputError("the test split needs at least 2 characters")
    context = _require_context(model, context)
    device = model.token_embedding.weight.device
    logits_of_window = model.config.block_size * model.config.vocab_size
    batch_size = max(1, min(batch_size, _LOGITS_AT_ONCE // logits_of_window))
    for batch in scoring_batches(tokens, model.config.block_size, context, batch_size):
        inputs, targets, scored = (torch.from_numpy(part).to(device) for part in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(inputs)
        yield logits.log_softmax(-1), targets, scored


def _of_targets(log_probs: Tensor, targets: Tensor) -> Tensor:
    """The log probability of each target: (..., V) and (...) -> (...)."""
    return log_probs.gather(-1, targets[..., None])[..., 0]


def _sums(groups: npt.NDArray[np.int64], count: int, *values: Tensor) -> Floats:
    """How many there are in each group, then the sum of each of the values: (1 + values, count)."""
    weights = [None, *(value.cpu().numpy() for value in values)]
    return np.stack([np.bincount(groups, weight, count) for weight in weights]).astype(np.float64)

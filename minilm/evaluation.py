"""How well a model predicts a text: every character of it, not a sample."""

import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from minilm.batches import scoring_batches
from minilm.errors import InputError
from minilm.model import MiniGPT
from minilm.tokenizer import UNKNOWN_ID, CharTokenizer, Ids


class Evaluation(NamedTuple):
    """Means over every character of the text but the first, which nothing comes before."""

    loss: float  # nats a character
    bits_per_char: float
    perplexity: float  # a character
    word_perplexity: float  # a word between white space, from the whole text's nats
    accuracy: float  # share of characters that were the likeliest one
    unknown_char_rate: float  # share of characters that the vocabulary lacks


@torch.inference_mode()
def evaluate(
    model: MiniGPT, tokenizer: CharTokenizer, tokens: Ids, context: int | None = None, batch_size: int = 64
) -> Evaluation:
    """Score every character of `tokens` once, each with at least `context` characters before it.

    Args:
        model: in evaluation mode.
        tokenizer: knows which ids are white space.
        tokens: (tokens,), at least 2.
        context: less than block_size; None is half of block_size. More is fairer to the model and slower.
        batch_size: windows at once; the result does not depend on it but for rounding.

    Raises:
        InputError: the text is too short or the context too long.
    """
    if len(tokens) < 2:
        raise InputError("the test text needs at least 2 characters")
    block_size, device = model.config.block_size, model.token_embedding.weight.device
    context = block_size // 2 if context is None else context
    if not 0 <= context < block_size:
        raise InputError(f"eval_context: {context} must be below the model's block_size, {block_size}")
    nats, correct = 0.0, 0
    for batch in scoring_batches(tokens, block_size, context, batch_size):
        inputs, targets, scored = (torch.from_numpy(part).to(device) for part in batch)
        logits, targets = model(inputs)[scored], targets[scored]  # (scored, V) and (scored,)
        # Summed in double precision: the error of a long sum stays below that of its terms.
        nats += F.cross_entropy(logits.float(), targets, reduction="none").double().sum().item()
        correct += int((logits.argmax(-1) == targets).sum())
    predictions = len(tokens) - 1
    loss = nats / predictions
    return Evaluation(
        loss=loss,
        bits_per_char=loss / math.log(2),
        perplexity=_exp(loss),
        word_perplexity=_exp(nats / max(1, count_words(tokens, tokenizer))),
        accuracy=correct / predictions,
        unknown_char_rate=float(np.count_nonzero(tokens == UNKNOWN_ID)) / len(tokens),
    )


def count_words(tokens: Ids, tokenizer: CharTokenizer) -> int:
    """Words between white space, as `str.split` counts them."""
    is_space = np.array([False, *(character.isspace() for character in tokenizer.characters)])[tokens]
    starts_word = ~is_space & np.concatenate([[True], is_space[:-1]])
    return int(starts_word.sum())


def _exp(nats: float) -> float:
    """E to the nats, or the largest number where that is larger, as for one very long word."""
    return math.exp(min(nats, math.log(sys.float_info.max)))

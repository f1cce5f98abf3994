"""What the attention heads have learned to look for: the character before, or what came after it last time.

An induction head completes a text that it has seen: where "…ab…a" was read, it attends to the b. It takes two
layers: an earlier head attends to the previous character, so that the b knows what stood before it
("In-context Learning and Induction Heads", Olsson et al., 2022).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from minilm.data.tokenizer import UNKNOWN_ID, Ids
from minilm.model.gpt import MiniGPT

LONGEST_WINDOW = 128  # the weights of all heads at once take its square
WINDOWS = 8


class HeadScores(NamedTuple):
    """Mean attention weights of one head, from 0 to 1."""

    previous: float  # to the character before, in windows of the text
    induction: float  # in the second copy of a random sequence, to what followed the character in the first


@torch.inference_mode()
def head_scores(model: MiniGPT, tokens: Ids) -> list[list[HeadScores]]:
    """The scores of each layer's heads on the middle of the tokens, (tokens,).

    The random sequences hold each character of that text once, so that what followed it is one place. The
    same model and tokens give the same scores.
    """
    device, size = model.token_embedding.weight.device, min(model.config.block_size, LONGEST_WINDOW)
    count = max(1, min(WINDOWS, len(tokens) // size))
    first = max(0, (len(tokens) - count * size) // 2)
    text = np.array(tokens[first : first + count * size], np.int64)
    characters = np.setdiff1d(text, [UNKNOWN_ID])
    generator = np.random.default_rng(0)
    sequences = [generator.permutation(characters)[: size // 2] for _ in range(WINDOWS)]
    windows = torch.from_numpy(text.reshape(count, -1)).to(device)
    repeated = torch.from_numpy(np.tile(sequences, 2)).to(device)
    previous = attention_to_previous(model.attention_weights(windows))
    induction = attention_to_successor(model.attention_weights(repeated))
    return [
        [HeadScores(*scores) for scores in zip(*layer, strict=True)]
        for layer in zip(previous.tolist(), induction.tolist(), strict=True)
    ]


def attention_to_previous(weights: Tensor) -> Tensor:
    """Mean weight of the position before, of all positions but the first: (L, B, H, T, T) -> (L, H)."""
    return _mean(weights.diagonal(-1, -2, -1))


def attention_to_successor(weights: Tensor) -> Tensor:
    """Mean weight, in the second half of T, of the position that follows the same one in the first half.

    Both halves are the same sequence: (L, B, H, T, T) -> (L, H).
    """
    half = weights.shape[-1] // 2
    return _mean(weights[..., half:, :].diagonal(1, -2, -1))


def _mean(weights: Tensor) -> Tensor:
    """Over sequences and positions: (L, B, H, positions) -> (L, H); 0 where there are none."""
    return weights.mean((1, 3)).nan_to_num()

"""Drawing a character from the model's distribution: temperature, top_k, top_p and min_p."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from minilm.data.tokenizer import UNKNOWN_ID
from minilm.generation.config import Sampling


def limit(logits: Tensor, sampling: Sampling) -> Tensor:
    """Minus infinity for what must not be drawn, by one limit after the other: (B, V) -> (B, V).

    `logits` may be changed.
    """
    logits[:, UNKNOWN_ID] = -torch.inf  # never drawn: it stands for no text
    if 0 < sampling.top_k < logits.shape[-1]:
        likely, which = logits.topk(sampling.top_k)
        logits = torch.full_like(logits, -torch.inf).scatter_(-1, which, likely)
    if sampling.top_p < 1 or sampling.min_p:
        ranked, order = logits.sort(descending=True, stable=True)
        probabilities = torch.softmax(ranked / max(sampling.temperature, 1e-30), dim=-1)
        # A character stays if those before it have not reached top_p yet, so the most likely always does.
        ranked[probabilities.cumsum(-1) - probabilities >= sampling.top_p] = -torch.inf
        ranked[probabilities < sampling.min_p * probabilities[:, :1]] = -torch.inf
        logits = torch.empty_like(logits).scatter(-1, order, ranked)
    return logits


def gumbel_noise(
    seeds: Sequence[int], vocab_size: int, temperature: float, device: torch.device
) -> Iterator[Tensor]:
    """What makes the largest logit a draw from softmax(logits / temperature); yields (B, V) per character.

    Gumbel noise times the temperature: the Gumbel-max trick ("A* Sampling", Maddison et al., 2014). Each of
    the B texts has its own generator, so that it does not depend on those beside it: the Mersenne Twister
    of 32 bits, which the explorer's page computes too.
    """
    generators = [np.random.RandomState(seed % 2**32) for seed in seeds]
    steps = max(1, 2**14 // vocab_size)  # made at once, which is faster
    while True:
        bits = [
            generator.randint(2**32, size=(steps, vocab_size), dtype=np.uint32) for generator in generators
        ]
        uniform = (np.stack(bits, axis=1) + 0.5) / 2**32  # above 0 and below 1
        yield from torch.from_numpy(-temperature * np.log(-np.log(uniform))).float().to(device)

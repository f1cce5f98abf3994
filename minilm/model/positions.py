"""How attention knows about order: the causal mask, and four schemes for positions.

Attention by itself sees a set. `learned` and `sinusoidal` add a vector for each position to the embeddings;
`rope` rotates queries and keys by an angle that grows with the position; `alibi` lowers a score by the
distance. (The table of `learned` is a parameter of the model, in gpt.py.)
"""

import math

import torch
from torch import Tensor


def causal_mask(time: int, device: torch.device) -> Tensor:
    """Added to the scores: minus infinity where the key comes after the query, else 0: (T, T)."""
    return torch.full((time, time), -torch.inf, device=device).triu(1)


def sinusoidal_table(length: int, channels: int) -> Tensor:
    """Sines and cosines of the position at wavelengths from 2π to 20,000π: (length, channels).

    PE(t, 2i) = sin(t / 10000^(2i/C)) and PE(t, 2i+1) = cos(t / 10000^(2i/C))
    ("Attention Is All You Need", Vaswani et al., 2017, section 3.5).
    """
    table = torch.empty(length, channels)
    angles = _angles(torch.arange(length), channels)  # (length, channels / 2, rounded up)
    table[:, 0::2] = angles.sin()
    table[:, 1::2] = angles[:, : channels // 2].cos()
    return table


def rope_rotation(positions: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles by which `rotate` rotates a head's channels: (T,) -> two (T, D/2)."""
    angles = _angles(positions, channels)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of channels by angles that grow with the position: (..., T, D) -> (..., T, D).

    The pair (i, i + D/2) is rotated by t / 10000^(2i/D), so that the product of a query and a key depends on
    their distance only: RoPE ("RoFormer: Enhanced Transformer with Rotary Position Embedding", Su et al.,
    2021). The paper pairs neighbors; this pairing, Llama's, is the same up to the order of channels.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def alibi_slopes(num_heads: int) -> Tensor:
    """By how much each head's scores fall per character of distance: (H,).

    For a power of two the geometric sequence 2^(-8/H), 2^(-16/H), ... ("Train Short, Test Long: Attention
    with Linear Biases Enables Input Length Extrapolation", Press et al., 2022); for other numbers, as in its
    authors' code, the sequence of the next lower power of two, filled up with every second slope of the next
    higher one.
    """
    lower = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 / lower * torch.arange(1, lower + 1))
    between = 2.0 ** (-4.0 / lower * torch.arange(1, 2 * lower + 1, 2))
    return torch.cat([slopes, between[: num_heads - lower]])


def alibi_bias(slopes: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """What ALiBi adds to the scores, -slope · distance: (H,), (Q,) and (K,) positions -> (H, Q, K)."""
    return -slopes[:, None, None] * (queries[:, None] - keys[None, :])


def _angles(positions: Tensor, channels: int) -> Tensor:
    """Position / 10000^(2i/channels) for each pair i of channels: (T,) -> (T, channels / 2, rounded up)."""
    pairs = torch.arange(0, channels, 2, device=positions.device)
    return positions[:, None] * 10000.0 ** (-pairs / channels)

"""What the characters just before contribute directly, without attention; optional, and off by default.

Attention has to learn which character is the one before, and a small model in few steps hardly does. These
two give it that from the first step on, for next to no computation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HASHED = 2**32  # n-grams are hashed as 32-bit numbers
MULTIPLIER = 2654435761  # near 2^32 divided by the golden ratio


def token_shift(x: Tensor, share: float) -> Tensor:
    """Take a share of the channels from the position before, zeros at the first: (B, T, C) -> (B, T, C).

    "RWKV: Reinventing RNNs for the Transformer Era" (Peng et al., 2023), in the form of its predecessors:
    each channel is wholly of one position.
    """
    shifted = shifted_channels(x.shape[-1], share)
    before = F.pad(x[:, :-1, :shifted], (0, 0, 1, 0))  # (B, T, shifted)
    return torch.cat([before, x[..., shifted:]], dim=-1)


def shifted_channels(channels: int, share: float) -> int:
    """How many of the channels `token_shift` takes from the position before."""
    return round(share * channels)


class NGramEmbedding(nn.Module):
    """The sum of a learned vector for each n-gram that ends at a position: of 2, 3, ... `longest` characters.

    A table with a row for each possible n-gram, as counting models have it, where `rows` suffice; otherwise
    several n-grams share a row ("Hash Embeddings for Efficient Word Representations", Svenstrup et al., 2017;
    of byte n-grams in "Byte Latent Transformer", Pagnoni et al., 2024). Before the first position stands the
    unknown character, id 0.

    Args:
        vocab_size: V.
        channels: C.
        longest: of n, at least 2.
        rows: most rows of a table.
    """

    def __init__(self, vocab_size: int, channels: int, longest: int, rows: int):
        super().__init__()
        self.vocab_size = vocab_size
        self.tables = nn.ModuleList(
            nn.Embedding(min(vocab_size**n, rows), channels) for n in range(2, longest + 1)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)."""
        number, total = ids, torch.zeros((), device=ids.device)
        for before, table in enumerate(self.tables, start=1):
            # The characters of an n-gram are the digits of a number in base V, the last one first.
            earlier = F.pad(ids[:, :-before], (before, 0))[:, : ids.shape[1]]
            number = number + earlier * self.vocab_size**before
            total = total + table(hashed(number, table.num_embeddings, self.vocab_size ** (before + 1)))
        return total


def hashed(numbers: Tensor, rows: int, count: int) -> Tensor:
    """The rows of numbers below `count`, of any shape: themselves where the rows suffice, otherwise a hash.

    Fibonacci hashing: multiply modulo 2^32 and take the highest bits ("The Art of Computer Programming",
    section 6.4, Knuth, 1973).
    """
    if count <= rows:
        return numbers
    return numbers % HASHED * MULTIPLIER % HASHED * rows // HASHED

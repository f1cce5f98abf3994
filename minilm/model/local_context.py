"""What the characters just before contribute directly, without attention; optional, and off by default.

Attention has to learn which character is the one before, and a small model in few steps hardly does. These
two give it that from the first step on, for next to no computation.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PRIME = 2654435761  # near 2^32 divided by the golden ratio


def token_shift(x: Tensor, channels: int, before: Tensor | None = None) -> Tensor:
    """Take the first channels from the position before: (B, T, C) -> (B, T, C).

    "RWKV: Reinventing RNNs for the Transformer Era" (Peng et al., 2023) mixes both positions in a learned
    ratio; here, as in its predecessors, a channel is wholly of one of them.

    Args:
        x: (B, T, C).
        channels: how many.
        before: those of the position before the first, (B, 1, channels); None is zeros.
    """
    if before is None:
        before = x.new_zeros(len(x), 1, channels)
    return torch.cat([torch.cat([before, x[:, :-1, :channels]], dim=1), x[..., channels:]], dim=-1)


class NGramEmbedding(nn.Module):
    """The sum of learned vectors for the n-grams that end at a position, n from 2 to `longest`.

    Each n has a table with a row for every possible n-gram, as counting models have it, if `rows` suffice;
    otherwise n-grams share rows ("Hash Embeddings for Efficient Word Representations", Svenstrup et al.,
    2017; for byte n-grams "Byte Latent Transformer", Pagnoni et al., 2024). Before the first position stands
    the unknown character, id 0.

    Args:
        vocab_size: V.
        channels: C.
        longest: N, at least 2.
        rows: most rows of a table.
    """

    powers: Tensor  # of V, modulo PRIME, (N,)
    sizes: Tensor  # of the tables, (N - 1,)
    offsets: Tensor  # where each table begins, (N - 1,)
    exact: Tensor  # whether each table has a row for every n-gram, (N - 1,)

    def __init__(self, vocab_size: int, channels: int, longest: int, rows: int):
        super().__init__()
        self.longest = longest
        sizes = torch.tensor([min(vocab_size**n, rows) for n in range(2, longest + 1)])
        # Modulo a prime: modulo 2^32, the bits of a hash, large powers of an even V would end in zeros.
        powers = torch.tensor([vocab_size**n % PRIME for n in range(longest)])
        exact = torch.tensor([vocab_size**n <= rows for n in range(2, longest + 1)])
        self.register_buffer("powers", powers, persistent=False)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("offsets", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("exact", exact, persistent=False)
        self.tables = nn.Embedding(int(sizes.sum()), channels)  # one after the other

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, C)."""
        return self.embed(F.pad(ids, (self.longest - 1, 0)).unfold(1, self.longest, 1))

    def embed(self, windows: Tensor) -> Tensor:
        """Of the latest N characters, the newest last: (B, T, N) -> (B, T, C)."""
        # An n-gram is a number of n digits in base V, the newest character being its last digit; where powers
        # of V exceed PRIME, it is hashed anyway.
        numbers = (windows.flip(-1) * self.powers).cumsum(-1)[..., 1:]  # (B, T, N - 1)
        # Fibonacci hashing: of the product's lower 32 bits the highest are taken ("The Art of Computer
        # Programming", Knuth, 1973, volume 3, section 6.4).
        hashes = (numbers * PRIME % 2**32) * self.sizes >> 32
        rows = torch.where(self.exact, numbers, hashes) + self.offsets
        vectors = F.embedding_bag(rows.flatten(0, 1), self.tables.weight, mode="sum")  # (B T, C)
        return vectors.view(*windows.shape[:2], -1)

"""The model: a GPT that reads characters and says how likely each one is to come next.

The file follows the forward pass from the inside out: attention, the MLP, the block that holds both,
and the whole model. Shapes: B sequences in a batch, T characters in time, C channels (embed_dim),
H heads, V characters in the vocabulary.

The architecture is the classic one: "Attention Is All You Need" (Vaswani et al., 2017) with the
normalisation before each part and the initialisation of "Language Models are Unsupervised Multitask
Learners" (GPT-2, Radford et al., 2019). With the same weights, its logits are those of Hugging Face's
GPT-2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.errors import InputError

# GPT-2's GELU is the tanh approximation (Hendrycks and Gimpel, 2016).
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": partial(nn.GELU, approximate="tanh"),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the model's shape.

    Raises:
        InputError: embed_dim is not divisible by num_heads, or the activation is unknown.
    """

    vocab_size: int
    block_size: int = 128
    embed_dim: int = 128
    num_heads: int = 4
    num_layers: int = 2
    mlp_ratio: int = 4
    activation: str = "relu"
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise InputError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")


class SelfAttention(nn.Module):
    """Causal multi-head self-attention: each position gathers from itself and those before it.

    Each head computes softmax(Q Kᵀ / sqrt(C/H)) V over its own C/H channels, where a position's scores
    for later positions are minus infinity before the softmax.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.attention_dropout
        # Queries, keys and values of all heads come from one matrix product instead of 3 H small ones.
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.projection = nn.Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        batch, time, channels = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, C/H)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.projection(mixed.transpose(1, 2).reshape(batch, time, channels))


class MLP(nn.Module):
    """What each position does by itself: widen, apply the non-linearity, narrow."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden = config.mlp_ratio * config.embed_dim
        self.expand = nn.Linear(config.embed_dim, hidden)
        self.activation = ACTIVATIONS[config.activation]()
        self.projection = nn.Linear(hidden, config.embed_dim)
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.projection(self.activation(self.expand(x))))


class TransformerBlock(nn.Module):
    """Attention, then the MLP; each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.embed_dim)
        self.attention = SelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.embed_dim)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class MiniGPT(nn.Module):
    """Embeddings, the blocks, a last normalisation, and a score for each character of the vocabulary.

    Args:
        config: the shape.
        seed: the same config and seed give the same weights; torch's global generator is left alone.
    """

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
            self.position_embedding = nn.Embedding(config.block_size, config.embed_dim)
            self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
            self.final_norm = nn.LayerNorm(config.embed_dim)
            self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: normal with deviation 0.02, biases zero.

        The projections that write into the residual stream are scaled down by the square root of their
        number, 2 a layer, so that the stream's variance does not grow with depth.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("projection.weight"):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.num_layers))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits for the character after each one: (B, T) -> (B, T, V).

        Raises:
            InputError: there are more than block_size characters.
        """
        time = ids.shape[1]
        if time > self.config.block_size:
            raise InputError(
                f"{time} characters are more than the model's block_size, {self.config.block_size}"
            )
        positions = torch.arange(time, device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        # The token embedding also scores the characters (tied weights): a character's row is both what
        # it means as input and what it looks like as output.
        return F.linear(self.final_norm(x), self.token_embedding.weight)

    @property
    def num_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(parameter.numel() for parameter in self.parameters())

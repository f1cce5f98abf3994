"""The model's configuration: everything that decides its shape, without torch."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from minilm.errors import InputError

Position = Literal["learned", "sinusoidal", "rope", "alibi"]
Activation = Literal["relu", "gelu", "relu2", "swiglu"]
Normalization = Literal["layernorm", "rmsnorm"]
POSITIONS, ACTIVATIONS, NORMALIZATIONS = get_args(Position), get_args(Activation), get_args(Normalization)
SEED = 1337  # of the initial weights, where no other is given
# The explorer page runs models of at most so many parameters; of larger ones no film is kept for it.
MOST_EXPLORED = 10_000_000


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; docs/parameters.md says what each value means.

    Raises:
        InputError: a value is out of its range or does not fit the others, or a name is unknown.
    """

    vocab_size: int
    block_size: int = 128
    embed_dim: int = 128
    num_heads: int = 4
    num_layers: int = 2
    mlp_ratio: int = 4
    position: Position = "learned"
    activation: Activation = "relu"
    normalization: Normalization = "layernorm"
    qk_norm: bool = False
    tied_embeddings: bool = True
    biases: bool = True
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    logit_softcap: float = 0.0
    zero_init_projections: bool = False
    token_shift: float = 0.0
    ngram_embedding: int = 1
    ngram_rows: int = 8192

    def __post_init__(self) -> None:
        for field in fields(self):
            value, names = getattr(self, field.name), get_args(field.type)
            below = 1 if field.name.endswith(("dropout", "shift")) else math.inf
            if field.type is int and not (isinstance(value, int) and value >= 1):
                raise InputError(f"{field.name} {value!r} must be a whole number from 1 on")
            if field.type is float and not 0 <= value < below:
                raise InputError(f"{field.name} {value!r} must be from 0 to below {below}")
            if names and value not in names:
                raise InputError(f"{field.name} {value!r} is none of {', '.join(names)}")
        if self.embed_dim % self.num_heads:
            raise InputError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.position == "rope" and self.head_dim % 2:
            raise InputError(
                f"position rope rotates pairs of channels, but a head has {self.head_dim}, an odd number "
                f"(embed_dim {self.embed_dim} / num_heads {self.num_heads})"
            )

    @classmethod
    def from_params(cls, vocab_size: int, params: Any) -> Self:
        """The shape that the training parameters (`minilm.params.TrainParams`) ask for."""
        names = [field.name for field in fields(cls) if field.name != "vocab_size"]
        return cls(vocab_size, **{name: getattr(params, name) for name in names})

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads

    @property
    def shifted_channels(self) -> int:
        """Channels that each part of a block reads from the position before."""
        return round(self.token_shift * self.embed_dim)

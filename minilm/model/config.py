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
    """The shape of a model; docs/parameters.md says more of each value.

    Raises:
        InputError: a value is out of its range or does not fit the others, or a name is unknown.
    """

    vocab_size: int  # V, characters and the unknown one
    block_size: int = 128  # most characters in a window, T
    embed_dim: int = 128  # C, width of the residual stream
    num_heads: int = 4  # H, attention heads per block
    num_layers: int = 2  # blocks
    mlp_ratio: int = 4  # width of the MLP's hidden layer, in embed_dims
    position: Position = "learned"  # how positions are encoded
    activation: Activation = "relu"  # non-linearity of the MLP
    normalization: Normalization = "layernorm"  # of what each part reads
    qk_norm: bool = False  # normalize each head's queries and keys too
    tied_embeddings: bool = True  # one matrix at both ends
    biases: bool = True  # in linear layers and LayerNorm
    attention_dropout: float = 0.0  # on the attention weights
    mlp_dropout: float = 0.0  # on the MLP's output
    logit_softcap: float = 0.0  # smooth limit of the logits' size; 0 is none
    zero_init_projections: bool = False  # what writes into the residual stream starts at zero
    token_shift: float = 0.0  # share of each part's input that comes from the character before
    ngram_embedding: int = 1  # longest n-gram with a vector of its own; 1 is none
    ngram_rows: int = 8192  # most rows of an n-gram table

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

"""The model: a GPT that reads characters and says how likely each one is to come next.

The file follows the forward pass from the inside out: attention, the MLP, the block that holds both,
and the whole model. Shapes: B sequences in a batch, T characters in time, C channels (embed_dim),
H heads, D = C/H channels a head, V characters in the vocabulary.

The default architecture is the classic one: "Attention Is All You Need" (Vaswani et al., 2017) with the
normalisation before each part and the initialisation of "Language Models are Unsupervised Multitask
Learners" (GPT-2, Radford et al., 2019). With the same weights, its logits are those of Hugging Face's
GPT-2; with rope, rmsnorm, swiglu, untied embeddings and no biases they are those of its Llama.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.activations import relu
from minilm.errors import InputError
from minilm.positions import POSITIONS, alibi_bias, alibi_slopes, rope_rotation, rotate, sinusoidal_table

ACTIVATIONS = ("relu", "gelu", "relu2", "swiglu")
NORMALIZATIONS = ("layernorm", "rmsnorm")


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the model's shape; the README says what each is.

    Raises:
        InputError: the values do not fit together, or a name is unknown.
    """

    vocab_size: int
    block_size: int = 128
    embed_dim: int = 128
    num_heads: int = 4
    num_layers: int = 2
    mlp_ratio: int = 4
    position: str = "learned"
    activation: str = "relu"
    normalization: str = "layernorm"
    qk_norm: bool = False
    tied_embeddings: bool = True
    biases: bool = True
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    logit_softcap: float = 0.0
    zero_init_projections: bool = False

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise InputError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if self.position == "rope" and self.head_dim % 2:
            raise InputError(
                f"position rope turns pairs of channels, but a head has {self.head_dim}, an odd number "
                f"(embed_dim {self.embed_dim} / num_heads {self.num_heads})"
            )
        for key, known in (
            ("position", POSITIONS),
            ("activation", ACTIVATIONS),
            ("normalization", NORMALIZATIONS),
        ):
            if getattr(self, key) not in known:
                raise InputError(f"{key} {getattr(self, key)!r} is none of {', '.join(known)}")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.embed_dim // self.num_heads


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²)) · gain ("Root Mean Square Layer Normalization", Zhang and Sennrich, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same."""
        # torch's fused kernel wants the gain in the input's dtype, which mixed precision lowers.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def normalization(config: ModelConfig, channels: int) -> nn.Module:
    """Bring each vector to unit scale, then let a learned gain scale its channels.

    LayerNorm ("Layer Normalization", Ba et al., 2016) also takes the mean away and, with biases, adds a
    learned shift; RMSNorm does neither.
    """
    if config.normalization == "rmsnorm":
        return RMSNorm(channels, eps=1e-5)
    return nn.LayerNorm(channels, bias=config.biases)


class SelfAttention(nn.Module):
    """Causal multi-head self-attention: each position gathers from itself and those before it.

    Each head computes softmax(Q Kᵀ / sqrt(D)) V over its own D channels, where a position's scores for
    later positions are minus infinity before the softmax.

    qk_norm normalises each head's queries and keys before the product, which bounds the scores ("Scaling
    Vision Transformers to 22 Billion Parameters", Dehghani et al., 2023).
    """

    slopes: Tensor  # ALiBi's

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        # Queries, keys and values of all heads come from one matrix product instead of 3 H small ones.
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim, bias=config.biases)
        if config.qk_norm:
            self.query_norm = normalization(config, config.head_dim)
            self.key_norm = normalization(config, config.head_dim)
        self.projection = nn.Linear(config.embed_dim, config.embed_dim, bias=config.biases)
        if config.position == "alibi":
            self.register_buffer("slopes", alibi_slopes(config.num_heads), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.projection(self.mix(*self.heads(x)))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each position gathers, the heads side by side: three (B, H, T, D) -> (B, T, C)."""
        dropout = self.config.attention_dropout if self.training else 0.0
        if query.device.type == "cpu" and query.dtype == torch.bfloat16:
            # On a CPU the fused kernel's backward pass in bfloat16 takes several times as long as this.
            mixed = F.dropout(self._weights(query, key), dropout) @ value
        elif self.config.position == "alibi":
            bias = self._score_bias(query.shape[2], query)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def weights(self, x: Tensor) -> Tensor:
        """How much each position takes from each, rows that sum to 1: (B, T, C) -> (B, H, T, T)."""
        query, key, _ = self.heads(x)
        return self._weights(query, key)

    def heads(
        self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads: (B, T, C) -> three (B, H, T, D).

        `rotation`, two (T, D/2), is rope's for positions that do not begin at 0.
        """
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, 3, self.config.num_heads, self.config.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).contiguous()
        if self.config.qk_norm:
            query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        if self.config.position == "rope":
            rotation = rotation or rope_rotation(torch.arange(time, device=x.device), self.config.head_dim)
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        return query, key, value

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        """softmax(Q Kᵀ / sqrt(D) + bias), summed in float32: two (B, H, T, D) -> (B, H, T, T)."""
        batch, heads, time, channels = query.shape
        bias = self._score_bias(time, query).repeat(batch if self.config.position == "alibi" else 1, 1, 1)
        # One call for product, scale and bias: each pass over (B, H, T, T) costs as much as the product.
        scores = torch.baddbmm(
            bias, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=channels**-0.5
        )
        return scores.softmax(-1).view(batch, heads, time, time)

    def _score_bias(self, time: int, like: Tensor) -> Tensor:
        """Minus infinity for what is later, and ALiBi's share before: (1 or H, T, T) in `like`'s dtype."""
        bias = torch.full((1, time, time), -torch.inf, device=like.device).triu(1)
        if self.config.position == "alibi":
            positions = torch.arange(time, device=like.device)
            bias = bias + alibi_bias(self.slopes, positions, positions)
        return bias.to(like.dtype)


class MLP(nn.Module):
    """What each position does by itself: widen, apply the non-linearity, narrow.

    relu    max(0, x)
    gelu    x Φ(x), GPT-2's tanh approximation ("Gaussian Error Linear Units", Hendrycks and Gimpel, 2016)
    relu2   max(0, x)² ("Primer: Searching for Efficient Transformers", So et al., 2021)
    swiglu  silu(x W) · (x U) ("GLU Variants Improve Transformer", Shazeer, 2020): with two matrices that
            widen instead of one, the hidden width is 2/3 of the others', to keep the parameter count
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.activation = config.activation
        hidden = config.mlp_ratio * config.embed_dim
        if config.activation == "swiglu":
            hidden = max(1, round(hidden * 2 / 3))
        widened = 2 * hidden if config.activation == "swiglu" else hidden
        self.expand = nn.Linear(config.embed_dim, widened, bias=config.biases)
        self.projection = nn.Linear(hidden, config.embed_dim, bias=config.biases)
        self.dropout = nn.Dropout(config.mlp_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.dropout(self.projection(self.activate(self.expand(x))))

    def activate(self, x: Tensor) -> Tensor:
        """The non-linearity: (..., widened) -> (..., hidden)."""
        if self.activation == "relu":
            return relu(x)
        if self.activation == "gelu":
            return F.gelu(x, approximate="tanh")
        if self.activation == "relu2":
            return relu(x).square()
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class TransformerBlock(nn.Module):
    """Attention, then the MLP; each reads a normalised copy of the residual stream and adds to it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = normalization(config, config.embed_dim)
        self.attention = SelfAttention(config)
        self.mlp_norm = normalization(config, config.embed_dim)
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

    position_table: Tensor  # of sinusoidal positions, (block_size, C)

    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
            if config.position == "learned":
                self.position_embedding = nn.Embedding(config.block_size, config.embed_dim)
            elif config.position == "sinusoidal":
                table = sinusoidal_table(config.block_size, config.embed_dim)
                self.register_buffer("position_table", table, persistent=False)
            self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
            self.final_norm = normalization(config, config.embed_dim)
            if not config.tied_embeddings:
                self.head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
            self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: normal with deviation 0.02, biases zero.

        The projections that write into the residual stream are scaled down by the square root of their
        number, 2 a layer, so that the stream's variance does not grow with depth; or they start at zero,
        so that each block at first passes on what it gets ("Fixup Initialization", Zhang et al., 2019).
        """
        scaled = 0.0 if self.config.zero_init_projections else 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("projection.weight"):
                nn.init.normal_(parameter, std=scaled)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits for the character after each one, in float32: (B, T) -> (B, T, V).

        Raises:
            InputError: there are more than block_size characters.
        """
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.score(x)

    def score(self, x: Tensor) -> Tensor:
        """What the blocks made of each character -> logits for the next: (B, T, C) -> (B, T, V)."""
        return self.cap(F.linear(self.final_norm(x), self.score_weight))

    @property
    def score_weight(self) -> Tensor:
        """What the residual stream is compared with to score each character, (V, C).

        It is the token embedding, if tied: a character's row is both what it means as input and what it
        looks like as output ("Using the Output Embedding to Improve Language Models", Press and Wolf, 2017).
        """
        return self.token_embedding.weight if self.config.tied_embeddings else self.head.weight

    def cap(self, scores: Tensor) -> Tensor:
        """Logits in float32, within ±logit_softcap if that is set ("Gemma 2", Gemma Team, 2024)."""
        logits = scores.float()
        if self.config.logit_softcap:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    @torch.no_grad()
    def attention_weights(self, ids: Tensor) -> Tensor:
        """What each layer's heads attend to, rows that sum to 1: (B, T) -> (layers, B, H, T, T)."""
        x, weights = self.embed(ids), []
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            weights.append(block.attention.weights(block.attention_norm(x)))
            x = block(x)
        return torch.stack(weights)

    def embed(self, ids: Tensor, start: int = 0) -> Tensor:
        """The residual stream's beginning, for characters from position `start` on: (B, T) -> (B, T, C)."""
        time, device = ids.shape[1], ids.device.type
        if time > self.config.block_size:
            raise InputError(
                f"{time} characters are more than the model's block_size, {self.config.block_size}"
            )
        x = self.token_embedding(ids)
        if self.config.position == "learned":
            x = x + self.position_embedding.weight[start : start + time]
        elif self.config.position == "sinusoidal":
            x = x + self.position_table[start : start + time]
        # In mixed precision the residual stream is in the lower one too, which saves casts at each part.
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    @property
    def num_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations that training on one character takes, forward and backward.

        6 for each weight of a matrix product and 12 T C a layer for attention, counted as if it were not
        causal ("PaLM: Scaling Language Modeling with Pathways", Chowdhery et al., 2022, appendix B).
        """
        config = self.config
        in_products = sum(p.numel() for p in self.blocks.parameters() if p.dim() == 2)
        in_products += config.vocab_size * config.embed_dim
        return 6 * in_products + 12 * config.num_layers * config.embed_dim * config.block_size

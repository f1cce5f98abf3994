"""The model: a GPT that reads characters and gives a probability to each one that may come next.

The file follows the forward pass from the inside out: attention, the MLP, the block that holds both,
and the whole model. Shapes: B sequences in a batch, T characters in time, C channels (embed_dim),
H heads, D = C/H channels per head, V characters in the vocabulary.

The default architecture is the classic one: "Attention Is All You Need" (Vaswani et al., 2017) with the
normalization before each part and the initialization of "Language Models are Unsupervised Multitask
Learners" (GPT-2, Radford et al., 2019). With the same weights, its logits are those of Hugging Face's
GPT-2; with rope, rmsnorm, swiglu, untied embeddings and no biases they are those of its Llama.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilm.errors import InputError
from minilm.model.config import SEED, ModelConfig
from minilm.model.cpu_kernels import fused_attention, relu
from minilm.model.local_context import NGramEmbedding, token_shift
from minilm.model.positions import (
    alibi_bias,
    alibi_slopes,
    causal_mask,
    rope_rotation,
    rotate,
    sinusoidal_table,
)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²)) · gain ("Root Mean Square Layer Normalization", Zhang and Sennrich, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> the same."""
        # torch's fused kernel wants the gain in the input's dtype, which mixed precision lowers.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def normalization(config: ModelConfig, channels: int) -> nn.Module:
    """Bring each vector to unit scale, then let a learned gain scale its channels.

    LayerNorm ("Layer Normalization", Ba et al., 2016) also subtracts the mean and, with biases, adds a
    learned shift; RMSNorm does neither.
    """
    if config.normalization == "rmsnorm":
        return RMSNorm(channels, eps=1e-5)
    return nn.LayerNorm(channels, bias=config.biases)


class SelfAttention(nn.Module):
    """Causal multi-head self-attention: each position gathers from itself and from those before it.

    Each head computes softmax(Q Kᵀ / sqrt(D) + mask) V over its own D channels ("Attention Is All You
    Need", Vaswani et al., 2017, section 3.2). The mask is minus infinity for later positions, so that their
    weight is 0.

    qk_norm normalizes each head's queries and keys before the product, which bounds the scores ("Scaling
    Vision Transformers to 22 Billion Parameters", Dehghani et al., 2023).
    """

    fused = True  # by one fast kernel; False computes attention as it is written in `attend`
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
        query, key, value = self.project_qkv(x)  # three (B, H, T, D)
        gathered = self.attend(query, key, value)  # (B, H, T, D)
        gathered = gathered.transpose(1, 2).flatten(2)  # (B, T, C), the heads side by side
        return self.projection(gathered)  # (B, T, C)

    def project_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads: (B, T, C) -> three (B, H, T, D)."""
        batch, time, _ = x.shape
        qkv = self.qkv(x)  # (B, T, 3 C)
        qkv = qkv.view(batch, time, 3, self.config.num_heads, self.config.head_dim)  # (B, T, 3, H, D)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).contiguous()  # three (B, H, T, D)
        if self.config.qk_norm:
            query, key = self.query_norm(query).to(value.dtype), self.key_norm(key).to(value.dtype)
        if self.config.position == "rope":
            cos, sin = rope_rotation(torch.arange(time, device=x.device), self.config.head_dim)
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """softmax(Q Kᵀ / sqrt(D) + mask) V: three (B, H, T, D) -> (B, H, T, D)."""
        dropout = self.config.attention_dropout if self.training else 0.0
        if self.fused:
            mask = self.mask(query) if self.config.position == "alibi" else None
            return fused_attention(query, key, value, mask, dropout)
        weights = self.attention_weights(query, key)  # (B, H, T, T)
        return F.dropout(weights, dropout) @ value  # (B, H, T, D)

    def attention_weights(self, query: Tensor, key: Tensor) -> Tensor:
        """softmax(Q Kᵀ / sqrt(D) + mask), whose rows sum to 1: two (B, H, T, D) -> (B, H, T, T)."""
        scores = query @ key.transpose(-2, -1)  # (B, H, T, T), each query with each key
        scores = scores / math.sqrt(self.config.head_dim)  # keeps their variance at 1, whatever D is
        scores = scores + self.mask(query)  # (T, T) for all, or with ALiBi (H, T, T)
        return scores.softmax(-1)

    def mask(self, query: Tensor) -> Tensor:
        """What is added to the scores of (B, H, T, D) queries: the causal mask and ALiBi's bias.

        Returns (T, T), or (H, T, T) with ALiBi.
        """
        time = query.shape[2]
        mask = causal_mask(time, query.device)
        if self.config.position == "alibi":
            positions = torch.arange(time, device=query.device)
            mask = mask + alibi_bias(self.slopes, positions, positions)
        return mask


class MLP(nn.Module):
    """What each position computes by itself: widen, apply the non-linearity, narrow.

    relu    max(0, x)
    gelu    x Φ(x), GPT-2's tanh approximation ("Gaussian Error Linear Units (GELUs)", Hendrycks and Gimpel,
            2016)
    relu2   max(0, x)² ("Primer: Searching for Efficient Transformers for Language Modeling", So et al., 2021)
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
        x = self.activate(self.expand(x))  # (B, T, hidden)
        return self.dropout(self.projection(x))  # (B, T, C)

    def activate(self, x: Tensor) -> Tensor:
        """The non-linearity: (..., widened) -> (..., hidden)."""
        if self.activation == "relu":
            return relu(x)
        if self.activation == "gelu":
            return F.gelu(x, approximate="tanh")
        if self.activation == "relu2":
            return relu(x).square()
        gate, value = x.chunk(2, dim=-1)  # two (..., hidden)
        return F.silu(gate) * value


class TransformerBlock(nn.Module):
    """Attention, then the MLP; each reads a normalized copy of the residual stream and adds to it."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = normalization(config, config.embed_dim)
        self.attention = SelfAttention(config)
        self.mlp_norm = normalization(config, config.embed_dim)
        self.mlp = MLP(config)
        self.shifted_channels = config.shifted_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.shift(self.attention_norm(x)))
        return x + self.mlp(self.shift(self.mlp_norm(x)))

    def shift(self, x: Tensor) -> Tensor:
        """What a part reads, with a share of it from the position before: (B, T, C) -> (B, T, C)."""
        return token_shift(x, self.shifted_channels) if self.shifted_channels else x


class MiniGPT(nn.Module):
    """Embeddings, the blocks, a final normalization, and a logit for each character of the vocabulary.

    Args:
        config: the shape.
        seed: the same config and seed give the same weights; torch's global generator is left alone.
    """

    position_table: Tensor  # of sinusoidal positions, (block_size, C)

    def __init__(self, config: ModelConfig, seed: int = SEED):
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
            if config.ngram_embedding > 1:
                self.ngram_embedding = NGramEmbedding(
                    config.vocab_size, config.embed_dim, config.ngram_embedding, config.ngram_rows
                )
            self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.num_layers))
            self.final_norm = normalization(config, config.embed_dim)
            if not config.tied_embeddings:
                self.head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
            self._initialize()

    def _initialize(self) -> None:
        """GPT-2's: normal with standard deviation 0.02, biases zero.

        The projections that write into the residual stream are scaled down by the square root of their
        number, 2 per layer, so that the stream's variance does not grow with depth; or they start at zero,
        so that each block at first passes on its input ("Fixup Initialization", Zhang et al., 2019).
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
        x = self.embed(ids)  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        return self.unembed(x)  # (B, T, V)

    def embed(self, ids: Tensor) -> Tensor:
        """The residual stream before the first block: (B, T) -> (B, T, C)."""
        time, device = ids.shape[1], ids.device.type
        if time > self.config.block_size:
            raise InputError(
                f"{time} characters are more than the model's block_size, {self.config.block_size}"
            )
        x = self.token_embedding(ids)  # (B, T, C)
        if self.config.position == "learned":
            x = x + self.position_embedding.weight[:time]  # plus (T, C)
        elif self.config.position == "sinusoidal":
            x = x + self.position_table[:time]  # plus (T, C)
        if self.config.ngram_embedding > 1:
            x = x + self.ngram_embedding(ids)  # plus (B, T, C)
        # In mixed precision the residual stream is in the lower one too, which saves casts at each part.
        return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x

    def unembed(self, x: Tensor) -> Tensor:
        """The residual stream after the last block -> logits: (B, T, C) -> (B, T, V)."""
        return self.softcap(F.linear(self.final_norm(x), self.unembedding))

    @property
    def unembedding(self) -> Tensor:
        """What the residual stream is compared with to give logits, (V, C).

        It is the token embedding, if tied: a character's row is both what it means as input and what it
        looks like as output ("Using the Output Embedding to Improve Language Models", Press and Wolf, 2017).
        """
        return self.token_embedding.weight if self.config.tied_embeddings else self.head.weight

    def softcap(self, logits: Tensor) -> Tensor:
        """Logits in float32, within ±logit_softcap if that is set ("Gemma 2", Gemma Team, 2024)."""
        logits = logits.float()
        if self.config.logit_softcap:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    @torch.no_grad()
    def attention_weights(self, ids: Tensor) -> Tensor:
        """What each layer's heads attend to, rows that sum to 1: (B, T) -> (layers, B, H, T, T)."""
        x, weights = self.embed(ids), []
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            query, key, _ = block.attention.project_qkv(block.shift(block.attention_norm(x)))
            weights.append(block.attention.attention_weights(query, key))
            x = block(x)
        return torch.stack(weights)

    @property
    def num_parameters(self) -> int:
        """How many numbers training adjusts."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def flops_per_token(self) -> int:
        """Floating-point operations that training on one character takes, forward and backward.

        6 for each weight of a matrix product and 12 T C per layer for attention, counted as if it were not
        causal ("PaLM: Scaling Language Modeling with Pathways", Chowdhery et al., 2022, appendix B).
        """
        config = self.config
        in_products = sum(p.numel() for p in self.blocks.parameters() if p.dim() == 2)
        in_products += config.vocab_size * config.embed_dim
        return 6 * in_products + 12 * config.num_layers * config.embed_dim * config.block_size

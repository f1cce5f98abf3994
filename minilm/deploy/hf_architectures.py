"""The stock architectures of Hugging Face's transformers that compute what MiniGPT computes.

GPT-2 (Radford et al., 2019) has positions that are added; Persimmon (Elsen et al., 2023) is GPT-2 with rope;
Llama (Touvron et al., 2023) has RMSNorm and a gated MLP; Qwen3 (Yang et al., 2025) is Llama with normalized
queries and keys.
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from minilm.errors import InputError
from minilm.model.config import ModelConfig
from minilm.model.gpt import MiniGPT
from minilm.params import text_of


def _table(text: str) -> dict[str, dict[str, list[str]]]:
    """For each column the rows' values, of which a repeated row has several and "-" is none."""
    (_, *names), *rows = (line.split() for line in text.strip().splitlines())
    table: dict[str, dict[str, list[str]]] = {name: {} for name in names}
    for row, *values in rows:
        for name, value in zip(names, values, strict=True):
            if value != "-":
                table[name].setdefault(row, []).append(value)
    return table


# The values that map, for each setting of which some do not.
_TAKES = _table("""
setting          GPT-2       Persimmon  Llama    Qwen3
position         learned     rope       rope     rope
position         sinusoidal  -          -        -
activation       relu        relu       swiglu   swiglu
activation       gelu        gelu       -        -
activation       relu2       relu2      -        -
normalization    layernorm   layernorm  rmsnorm  rmsnorm
qk_norm          false       -          false    true
biases           -           -          -        false
logit_softcap    0.0         0.0        0.0      0.0
token_shift      0.0         0.0        0.0      0.0
ngram_embedding  1           1          1        1
""")
# Their names for our layers, for those of a block without the block's. Where one of ours is several there,
# the names are in the order of our layer's rows. Qwen3 has Llama's.
_LAYERS = _table("""
layer                 GPT-2             Persimmon                  Llama
token_embedding       transformer.wte   model.embed_tokens         model.embed_tokens
position_embedding    transformer.wpe   -                          -
blocks                transformer.h     model.layers               model.layers
attention_norm        ln_1              input_layernorm            input_layernorm
attention.qkv         attn.c_attn       self_attn.query_key_value  self_attn.q_proj
attention.qkv         -                 -                          self_attn.k_proj
attention.qkv         -                 -                          self_attn.v_proj
attention.query_norm  -                 self_attn.q_layernorm      self_attn.q_norm
attention.key_norm    -                 self_attn.k_layernorm      self_attn.k_norm
attention.projection  attn.c_proj       self_attn.dense            self_attn.o_proj
mlp_norm              ln_2              post_attention_layernorm   post_attention_layernorm
mlp.expand            mlp.c_fc          mlp.dense_h_to_4h          mlp.gate_proj
mlp.expand            -                 -                          mlp.up_proj
mlp.projection        mlp.c_proj        mlp.dense_4h_to_h          mlp.down_proj
final_norm            transformer.ln_f  model.final_layernorm      model.norm
head                  lm_head           lm_head                    lm_head
""")
_PATH = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Architecture:
    """A stock architecture, by its usual name: GPT-2, Persimmon, Llama or Qwen3."""

    name: str

    @property
    def model_type(self) -> str:
        """Its name in transformers."""
        return self.name.lower().replace("-", "")

    def configuration(self, model: MiniGPT) -> dict[str, Any]:
        """The keyword arguments of its configuration class."""
        config = model.config
        hidden = model.blocks[0].mlp.projection.in_features  # type: ignore[union-attr]
        # transformers calls GPT-2's tanh approximation by another name.
        activation = "gelu_new" if config.activation == "gelu" else config.activation
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        common: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "max_position_embeddings": config.block_size,
            "tie_word_embeddings": config.tied_embeddings,
            # None of the characters begins, ends or fills up a text.
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        if self.name == "GPT-2":
            return common | {
                "n_inner": hidden,
                "activation_function": activation,
                "layer_norm_epsilon": 1e-5,
                "attn_pdrop": config.attention_dropout,
                "resid_pdrop": config.mlp_dropout,
                "embd_pdrop": 0.0,
            }
        common |= {"intermediate_size": hidden, "attention_dropout": config.attention_dropout}
        if self.name == "Persimmon":
            return common | {
                "hidden_act": activation,
                "layer_norm_eps": 1e-5,
                "qk_layernorm": config.qk_norm,
                "rope_parameters": {**rope, "partial_rotary_factor": 1.0},
                "hidden_dropout": config.mlp_dropout,
            }
        common |= {"rms_norm_eps": 1e-5, "head_dim": config.head_dim, "rope_parameters": rope}
        if self.name == "Qwen3":
            return common | {"num_key_value_heads": config.num_heads}
        return common | {"attention_bias": config.biases, "mlp_bias": config.biases}

    def weights(self, model: MiniGPT) -> dict[str, Tensor]:
        """The model's weights under the architecture's names, in its layout."""
        layers = _LAYERS["Llama" if self.name == "Qwen3" else self.name]
        ours = {**dict(model.named_parameters()), "head.weight": model.unembedding}
        if model.config.position == "sinusoidal":
            ours["position_embedding.weight"] = model.position_table
        theirs = {}
        for path, tensor in ours.items():
            number, layer, kind = _PATH.fullmatch(path).groups()  # type: ignore[union-attr]
            block = f"{layers['blocks'][0]}.{number}." if number else ""
            if self.name == "GPT-2" and number and tensor.ndim == 2:
                tensor = tensor.T  # its blocks' matrices are (in, out)
            if self.name == "Persimmon" and layer == "attention.qkv":
                # It groups the rows by head.
                tensor = tensor.unflatten(0, (3, model.config.num_heads, -1)).transpose(0, 1).flatten(0, 2)
            for name, part in zip(layers[layer], tensor.chunk(len(layers[layer])), strict=True):
                theirs[f"{block}{name}.{kind}"] = part.detach().contiguous()
        return theirs


def stock_architecture(config: ModelConfig) -> Architecture:
    """The architecture that this shape maps to; if none, InputError names what the nearest would accept."""
    misfits = {
        name: [
            f"{key} {' or '.join(values)}, not {text_of(getattr(config, key))}"
            for key, values in takes.items()
            if text_of(getattr(config, key)) not in values
        ]
        for name, takes in _TAKES.items()
    }
    fewest = min(map(len, misfits.values()))
    nearest = {name: phrases for name, phrases in misfits.items() if len(phrases) == fewest}
    if not fewest:
        return Architecture(next(iter(nearest)))
    wants = "; ".join(f"{name} wants {', and '.join(phrases)}" for name, phrases in nearest.items())
    raise InputError(f"its settings map to no stock architecture of transformers: {wants}")

"""The stock architectures of Hugging Face's transformers that compute what MiniGPT computes.

GPT-2 (Radford et al., 2019) has positions that are added; Persimmon (Adept, 2023) is GPT-2 with rope; Llama
(Touvron et al., 2023) has RMSNorm and a gated MLP; Qwen3 (2025) is Llama with normalized queries and keys.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
""")


@dataclass(frozen=True)
class Architecture:
    """A stock architecture, by its usual name: GPT-2, Persimmon, Llama or Qwen3."""

    name: str

    @property
    def model_type(self) -> str:
        """Its name in transformers."""
        return self.name.lower().replace("-", "")

    def misfits(self, config: ModelConfig) -> list[str]:
        """A phrase for each setting that does not map, with the values that would."""
        found = {key: text_of(getattr(config, key)) for key in _TAKES[self.name]}
        return [
            f"{key} {' or '.join(values)}, not {found[key]}"
            for key, values in _TAKES[self.name].items()
            if found[key] not in values
        ]

    def configuration(self, model: MiniGPT) -> dict[str, Any]:
        """The keyword arguments of its configuration class."""
        config = model.config
        hidden = model.blocks[0].mlp.projection.in_features  # type: ignore[union-attr]
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        # transformers calls GPT-2's tanh approximation by another name.
        activation = "gelu_new" if config.activation == "gelu" else config.activation
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
        config, layers = model.config, _LAYERS["Llama" if self.name == "Qwen3" else self.name]
        theirs = {"lm_head.weight": model.unembedding}
        if config.position == "sinusoidal":
            theirs["transformer.wpe.weight"] = model.position_table
        for path, layer in model.named_modules():
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
            if weight is None or path == "head":
                continue
            number, ours = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", path).groups()  # type: ignore[union-attr]
            block = "" if number is None else f"{layers['blocks'][0]}.{number}."
            if bias is None and config.normalization == "layernorm" and not isinstance(layer, nn.Embedding):
                bias = torch.zeros(len(weight))  # GPT-2 and Persimmon have one in each LayerNorm and Linear
            if self.name == "GPT-2" and isinstance(layer, nn.Linear):
                weight = weight.T  # its blocks' matrices are (in, out)
            if bias is not None and self.name == "Persimmon" and ours == "attention.qkv":
                # It groups the rows by head.
                weight, bias = (
                    rows.unflatten(0, (3, config.num_heads, -1)).transpose(0, 1).flatten(0, 2)
                    for rows in (weight, bias)
                )
            for kind, tensor in (("weight", weight), ("bias", bias)):
                if tensor is not None:
                    parts = tensor.chunk(len(layers[ours]))
                    theirs |= {
                        f"{block}{name}.{kind}": part for name, part in zip(layers[ours], parts, strict=True)
                    }
        return {name: tensor.detach().contiguous() for name, tensor in theirs.items()}


def stock_architecture(config: ModelConfig) -> Architecture:
    """The architecture that this shape maps to.

    Raises:
        InputError: there is none; the message names what the nearest ones would accept.
    """
    misfits = {name: Architecture(name).misfits(config) for name in _TAKES}
    fewest = min(map(len, misfits.values()))
    nearest = {name: phrases for name, phrases in misfits.items() if len(phrases) == fewest}
    if not fewest:
        return Architecture(next(iter(nearest)))
    wants = "; ".join(f"{name} wants {', and '.join(phrases)}" for name, phrases in nearest.items())
    raise InputError(f"its settings map to no stock architecture of transformers: {wants}")

"""The stock architectures of Hugging Face's transformers that compute what MiniGPT computes.

GPT-2 (Radford et al., 2019) has positions that are added; Persimmon (Adept, 2023) is GPT-2 with rope; Llama
(Touvron et al., 2023) has RMSNorm and a gated MLP; Qwen3 (2025) is Llama with normalized queries and keys.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minilm.errors import InputError
from minilm.model.config import ModelConfig
from minilm.model.gpt import MiniGPT

# transformers calls GPT-2's tanh approximation by another name.
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu_new", "relu2": "relu2"}


@dataclass(frozen=True, eq=False)
class Architecture:
    """A stock architecture, and how a MiniGPT becomes one.

    Attributes:
        name: its usual name.
        model_type: its name in transformers.
        takes: the values that map, for each setting of which some do not.
        layers: its names for our layers, without the block's; where one layer of ours is several there, such
            as queries, keys and values, their names are in the order of our layer's rows.
        blocks: its name for a block, without the number.
        settings: its configuration, besides what all have in common.
        always_biased: each LayerNorm and Linear has a bias; where ours has none, it becomes zero.
        input_first: the blocks' matrices are (in, out), not (out, in).
        heads_first: the rows of the layer for queries, keys and values are grouped by head.
    """

    name: str
    model_type: str
    takes: Mapping[str, tuple[Any, ...]]
    layers: Mapping[str, tuple[str, ...]]
    blocks: str
    settings: Callable[[ModelConfig], dict[str, Any]]
    always_biased: bool = False
    input_first: bool = False
    heads_first: bool = False

    def misfits(self, config: ModelConfig) -> dict[str, tuple[Any, ...]]:
        """The settings that do not map, with the values that would."""
        return {key: values for key, values in self.takes.items() if getattr(config, key) not in values}

    def configuration(self, model: MiniGPT) -> dict[str, Any]:
        """The keyword arguments of its configuration class."""
        config, block = model.config, model.blocks[0]
        hidden = block.mlp.projection.in_features  # type: ignore[union-attr]
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.embed_dim,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "max_position_embeddings": config.block_size,
            "n_inner" if self.model_type == "gpt2" else "intermediate_size": hidden,
            "tie_word_embeddings": config.tied_embeddings,
            # None of the characters begins, ends or fills up a text.
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **self.settings(config),
        }

    def weights(self, model: MiniGPT) -> dict[str, Tensor]:
        """The model's weights under the architecture's names, in its layout."""
        config = model.config
        theirs = {"lm_head.weight": model.unembedding}
        if config.position == "sinusoidal":
            theirs[f"{self.layers['position_embedding'][0]}.weight"] = model.position_table
        for path, layer in model.named_modules():
            weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
            if weight is None or path == "head":
                continue
            number, ours = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", path).groups()  # type: ignore[union-attr]
            if bias is None and self.always_biased and not isinstance(layer, nn.Embedding):
                bias = torch.zeros(len(weight))
            if self.heads_first and ours == "attention.qkv":
                assert bias is not None
                weight, bias = (
                    rows.unflatten(0, (3, config.num_heads, -1)).transpose(0, 1).flatten(0, 2)
                    for rows in (weight, bias)
                )
            if self.input_first and isinstance(layer, nn.Linear):
                weight = weight.T
            names = self.layers[ours]
            for kind, tensor in (("weight", weight), ("bias", bias)):
                if tensor is not None:
                    for name, part in zip(names, tensor.chunk(len(names)), strict=True):
                        block = "" if number is None else f"{self.blocks}.{number}."
                        theirs[f"{block}{name}.{kind}"] = part
        return {name: tensor.detach().contiguous() for name, tensor in theirs.items()}


def stock_architecture(config: ModelConfig) -> Architecture:
    """The architecture that this shape maps to.

    Raises:
        InputError: there is none; the message names what the nearest ones would accept.
    """
    misfits = {architecture: architecture.misfits(config) for architecture in ARCHITECTURES}
    fewest = min(map(len, misfits.values()))
    nearest = [architecture for architecture in ARCHITECTURES if len(misfits[architecture]) == fewest]
    if not fewest:
        return nearest[0]
    wants = [
        f"{architecture.name} wants "
        + ", and ".join(
            f"{key} {' or '.join(map(_text, values))}, not {_text(getattr(config, key))}"
            for key, values in misfits[architecture].items()
        )
        for architecture in nearest
    ]
    raise InputError(f"its settings map to no stock architecture of transformers: {'; '.join(wants)}")


def _text(value: Any) -> str:
    """A setting's value as params.yaml writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_LLAMA_LAYERS = {
    "token_embedding": ("model.embed_tokens",),
    "final_norm": ("model.norm",),
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.query_norm": ("self_attn.q_norm",),
    "attention.key_norm": ("self_attn.k_norm",),
    "attention.projection": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.expand": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.projection": ("mlp.down_proj",),
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

ARCHITECTURES = (
    Architecture(
        name="GPT-2",
        model_type="gpt2",
        takes={
            "position": ("learned", "sinusoidal"),
            "activation": tuple(_ACTIVATIONS),
            "normalization": ("layernorm",),
            "qk_norm": (False,),
            "logit_softcap": (0.0,),
        },
        layers={
            "token_embedding": ("transformer.wte",),
            "position_embedding": ("transformer.wpe",),
            "final_norm": ("transformer.ln_f",),
            "attention_norm": ("ln_1",),
            "attention.qkv": ("attn.c_attn",),
            "attention.projection": ("attn.c_proj",),
            "mlp_norm": ("ln_2",),
            "mlp.expand": ("mlp.c_fc",),
            "mlp.projection": ("mlp.c_proj",),
        },
        blocks="transformer.h",
        settings=lambda config: {
            "activation_function": _ACTIVATIONS[config.activation],
            "layer_norm_epsilon": 1e-5,
            "attn_pdrop": config.attention_dropout,
            "resid_pdrop": config.mlp_dropout,
            "embd_pdrop": 0.0,
        },
        always_biased=True,
        input_first=True,
    ),
    Architecture(
        name="Persimmon",
        model_type="persimmon",
        takes={
            "position": ("rope",),
            "activation": tuple(_ACTIVATIONS),
            "normalization": ("layernorm",),
            "logit_softcap": (0.0,),
        },
        layers={
            **_LLAMA_LAYERS,
            "final_norm": ("model.final_layernorm",),
            "attention.qkv": ("self_attn.query_key_value",),
            "attention.query_norm": ("self_attn.q_layernorm",),
            "attention.key_norm": ("self_attn.k_layernorm",),
            "attention.projection": ("self_attn.dense",),
            "mlp.expand": ("mlp.dense_h_to_4h",),
            "mlp.projection": ("mlp.dense_4h_to_h",),
        },
        blocks="model.layers",
        settings=lambda config: {
            "hidden_act": _ACTIVATIONS[config.activation],
            "layer_norm_eps": 1e-5,
            "qk_layernorm": config.qk_norm,
            "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
            "attention_dropout": config.attention_dropout,
            "hidden_dropout": config.mlp_dropout,
        },
        always_biased=True,
        heads_first=True,
    ),
    Architecture(
        name="Llama",
        model_type="llama",
        takes={
            "position": ("rope",),
            "activation": ("swiglu",),
            "normalization": ("rmsnorm",),
            "qk_norm": (False,),
            "logit_softcap": (0.0,),
        },
        layers=_LLAMA_LAYERS,
        blocks="model.layers",
        settings=lambda config: {
            "rms_norm_eps": 1e-5,
            "head_dim": config.head_dim,
            "attention_bias": config.biases,
            "mlp_bias": config.biases,
            "rope_parameters": _ROPE,
            "attention_dropout": config.attention_dropout,
        },
    ),
    Architecture(
        name="Qwen3",
        model_type="qwen3",
        takes={
            "position": ("rope",),
            "activation": ("swiglu",),
            "normalization": ("rmsnorm",),
            "qk_norm": (True,),
            "biases": (False,),
            "logit_softcap": (0.0,),
        },
        layers=_LLAMA_LAYERS,
        blocks="model.layers",
        settings=lambda config: {
            "rms_norm_eps": 1e-5,
            "head_dim": config.head_dim,
            "num_key_value_heads": config.num_heads,
            "rope_parameters": _ROPE,
            "attention_dropout": config.attention_dropout,
        },
    ),
)

"""MiniLM: a small character-level GPT to learn from.

The public names are imported when they are first used (PEP 562), so that a program which only
encodes text never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm.checkpoint import load as load
    from minilm.corpus import load_wikitext as load_wikitext
    from minilm.generation import generate as generate
    from minilm.generation import generate_samples as generate_samples
    from minilm.generation import stream as stream
    from minilm.model import MiniGPT as MiniGPT
    from minilm.model import ModelConfig as ModelConfig
    from minilm.model import SelfAttention as SelfAttention
    from minilm.model import TransformerBlock as TransformerBlock
    from minilm.tokenizer import CharTokenizer as CharTokenizer
    from minilm.training import train as train

_HOME = {
    "CharTokenizer": "tokenizer",
    "MiniGPT": "model",
    "ModelConfig": "model",
    "SelfAttention": "model",
    "TransformerBlock": "model",
    "generate": "generation",
    "generate_samples": "generation",
    "load": "checkpoint",
    "load_wikitext": "corpus",
    "stream": "generation",
    "train": "training",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minilm' has no attribute {name!r}")
    return getattr(import_module(f"minilm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

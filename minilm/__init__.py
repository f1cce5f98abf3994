"""MiniLM: a small character-level GPT to learn from.

The public names are imported when they are first used (PEP 562), so that a program which only
encodes text never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minilm.checkpoint import load as load
    from minilm.data.corpus import load_wikitext as load_wikitext
    from minilm.data.tokenizer import CharTokenizer as CharTokenizer
    from minilm.generation.text import generate as generate
    from minilm.generation.text import generate_samples as generate_samples
    from minilm.generation.text import stream as stream
    from minilm.model.config import ModelConfig as ModelConfig
    from minilm.model.gpt import MiniGPT as MiniGPT
    from minilm.model.gpt import SelfAttention as SelfAttention
    from minilm.model.gpt import TransformerBlock as TransformerBlock
    from minilm.training.loop import train as train

_HOME = {
    "CharTokenizer": "data.tokenizer",
    "MiniGPT": "model.gpt",
    "ModelConfig": "model.config",
    "SelfAttention": "model.gpt",
    "TransformerBlock": "model.gpt",
    "generate": "generation.text",
    "generate_samples": "generation.text",
    "load": "checkpoint",
    "load_wikitext": "data.corpus",
    "stream": "generation.text",
    "train": "training.loop",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minilm' has no attribute {name!r}")
    return getattr(import_module(f"minilm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Models with random weights to export, for test_export.py and test_model_card.py."""

from pathlib import Path

import torch
from minilm.data.provenance import Source

from minilm import CharTokenizer, MiniGPT, ModelConfig, checkpoint

# White space, signs that other tokenizers write for it, marks that combine, and what looks special.
CHARACTERS = (
    "The quick brown fox jumps over the lazy dog.,?!'\"<s>/[UNK]|endoftext" + "\n\r\t \u00a0\u3000\u200b\x00"
    "▁ĠĊ##@@ée\u0301ﬁİ\u0131한👩\u200d🚀\ufe0f"
)
SOURCE = Source("wikitext-2", "hub:Salesforce/wikitext:wikitext-2-raw-v1", None, {"train": 1234567}, "ab12")
CONFIG = ModelConfig(len(CharTokenizer(CHARACTERS).characters) + 1, 25, 24, 3, 2, mlp_ratio=3)


def save_model(folder: Path, config: ModelConfig, source: Source = SOURCE) -> tuple[MiniGPT, CharTokenizer]:
    """A model folder with weights far from their initial values, so that every one matters."""
    model, tokenizer = MiniGPT(config).eval(), CharTokenizer(CHARACTERS)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    checkpoint.save(folder, model, tokenizer, {"steps": 7, "learning_rate": 0.0003}, source, {"torch": "x"})
    return model, tokenizer

"""Models for tests."""

import torch

from minilm import MiniGPT, ModelConfig


def randomized(config: ModelConfig) -> MiniGPT:
    """Weights far from their initial values, gains and biases included, so that every one matters."""
    model = MiniGPT(config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model

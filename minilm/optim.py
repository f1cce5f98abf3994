"""The optimizer: how gradients become steps."""

import torch
from torch import nn


def adamw(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019).

    Matrices and embeddings decay; biases and the gains of normalisations, which only shift and scale,
    do not.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    # fused updates all parameters in one kernel.
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)

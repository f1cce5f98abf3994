"""The optimizers and the learning rate: how gradients become updates of the weights."""

import math

import torch
from torch import Tensor, nn

from minilm.device import choose_precision
from minilm.model.gpt import MiniGPT
from minilm.params import TrainParams
from minilm.training.float32_muon import Float32Muon


def make_optimizers(model: MiniGPT, params: TrainParams) -> list[torch.optim.Optimizer]:
    """The optimizers that together adjust each parameter once.

    `adamw`: AdamW for all ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019).
    Weight decay applies to matrices and embeddings, not to biases and the gains of normalizations, which
    only shift and scale.

    `muon`: Muon for the blocks' matrices, AdamW for the rest. Muon gives all directions of a matrix's
    step the same length ("Muon: An optimizer for hidden layers in neural networks", Jordan et al., 2024); its
    steps are scaled to the size of AdamW's, so that one learning rate does for both ("Muon is Scalable for
    LLM Training", Liu et al., 2025).
    """
    optimizers: list[torch.optim.Optimizer] = []
    parameters = list(model.parameters())
    if params.optimizer == "muon":
        matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
        precision = choose_precision(params.precision, matrices[0].device)
        muon = torch.optim.Muon if precision == torch.bfloat16 else Float32Muon
        optimizers.append(
            muon(
                matrices,
                lr=params.learning_rate,
                weight_decay=params.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
        taken = set(map(id, matrices))
        parameters = [p for p in parameters if id(p) not in taken]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": params.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizers.append(
        torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=params.learning_rate,
            betas=(params.adam_beta1, params.adam_beta2),
            fused=True,  # all parameters in one kernel
        )
    )
    return optimizers


def learning_rate_at(step: int, params: TrainParams) -> float:
    """The learning rate of update `step`, from 1 to params.steps.

    It rises linearly over warmup_steps and then stays, or falls towards min_learning_rate_ratio along a line
    or half a cosine ("SGDR: Stochastic Gradient Descent with Warm Restarts", Loshchilov and Hutter, 2017). It
    would be there one step after the last: at a ratio of 0 an update there would change nothing.
    """
    if step <= params.warmup_steps:
        return params.learning_rate * step / params.warmup_steps
    done = (step - 1 - params.warmup_steps) / (params.steps - params.warmup_steps)  # 0 to below 1
    remaining = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[params.learning_rate_schedule]
    lowest = params.min_learning_rate_ratio
    return params.learning_rate * (lowest + (1 - lowest) * remaining)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """Set the learning rate of the next update."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradients down to a norm of at most `max_norm`, 0 being no limit.

    Returns their norm before, ().
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients

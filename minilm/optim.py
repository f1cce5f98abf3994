"""The optimizers: how gradients become steps, and how large these are when."""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minilm.device import choose_precision
from minilm.model import MiniGPT
from minilm.params import TrainParams


class Float32Muon(torch.optim.Muon):
    """torch's Muon with its matrix products in float32.

    torch's own are always in bfloat16, which hardware without units for it emulates, some twenty times as
    slowly.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Adjust each parameter that has a gradient."""
        assert closure is None, "torch's signature; nothing here passes one"
        for group in self.param_groups:
            learning_rate, memory = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                mean = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                mean.lerp_(parameter.grad, 1 - memory)
                # Nesterov's momentum looks a step ahead: the new gradient counts once more.
                step = orthogonalise(parameter.grad.lerp(mean, memory), group["ns_coefficients"])
                # A matrix with orthonormal rows or columns has a root mean square of 1 / sqrt(longer side);
                # AdamW's steps have about 0.2.
                size = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - learning_rate * group["weight_decay"])
                parameter.add_(step, alpha=-learning_rate * size)


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], iterations: int = 5) -> Tensor:
    """The matrix with its singular values brought near 1, between 0.7 and 1.2: (M, N) -> (M, N).

    Newton and Schulz's iteration, X <- a X + (b XXᵀ + c (XXᵀ)²) X. With the coefficients of Muon's paper it
    enlarges small singular values quickly, and is content to end near 1.
    """
    a, b, c = coefficients
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # XXᵀ is then the smaller product
    x = x / x.norm().clamp(min=1e-7)  # no singular value is larger than this norm
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def make_optimizers(model: MiniGPT, params: TrainParams) -> list[torch.optim.Optimizer]:
    """The optimizers that together adjust each parameter once.

    `adamw`: AdamW for all ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019).
    Matrices and embeddings decay; biases and the gains of normalisations, which only shift and scale, do
    not.

    `muon`: Muon for the blocks' matrices, AdamW for the rest. Muon makes the directions of a matrix's
    step equally long ("Muon: An optimizer for hidden layers in neural networks", Jordan et al., 2024); its
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

    It rises linearly over warmup_steps and then stays, or falls to min_learning_rate_ratio in a line or
    half a cosine ("SGDR: Stochastic Gradient Descent with Warm Restarts", Loshchilov and Hutter, 2017).
    """
    if step <= params.warmup_steps:
        return params.learning_rate * step / params.warmup_steps
    done = (step - 1 - params.warmup_steps) / max(1, params.steps - 1 - params.warmup_steps)  # 0 to 1
    remaining = {
        "constant": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    }[params.learning_rate_schedule]
    lowest = params.min_learning_rate_ratio
    return params.learning_rate * (lowest + (1 - lowest) * remaining)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    """Make the next step one of this size."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate


def clip_gradients(model: nn.Module, largest: float) -> torch.Tensor:
    """Scale the gradients down to a norm of `largest`, 0 being no limit; returns their norm before, ()."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), largest or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm

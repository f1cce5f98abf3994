"""Muon in float32: a faster equivalent of torch's, not needed to understand training.

torch's own computes its matrix products always in bfloat16, which hardware without units for it emulates,
some twenty times as slowly.
"""

import math

import torch
from torch import Tensor


class Float32Muon(torch.optim.Muon):
    """torch's Muon with its matrix products in float32."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Adjust each parameter that has a gradient."""
        assert closure is None, "torch's signature; nothing here passes one"
        for group in self.param_groups:
            learning_rate, decay = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - decay)
                # Nesterov's momentum looks a step ahead: the new gradient counts once more.
                step = orthogonalize(parameter.grad.lerp(momentum, decay), group["ns_coefficients"])
                # A matrix with orthonormal rows or columns has a root mean square of 1 / sqrt(longer side);
                # AdamW's steps have about 0.2.
                size = 0.2 * math.sqrt(max(parameter.shape))
                parameter.mul_(1 - learning_rate * group["weight_decay"])
                parameter.add_(step, alpha=-learning_rate * size)


def orthogonalize(matrix: Tensor, coefficients: tuple[float, float, float], iterations: int = 5) -> Tensor:
    """The matrix with its singular values brought near 1, between 0.7 and 1.2: (M, N) -> (M, N).

    The Newton-Schulz iteration, X <- a X + (b XXᵀ + c (XXᵀ)²) X. With the coefficients of Muon's authors it
    enlarges small singular values quickly, and ends near 1 without converging to it.
    """
    a, b, c = coefficients
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # XXᵀ is then the smaller product
    x = x / x.norm().clamp(min=1e-7)  # no singular value is larger than this norm
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T

"""max(0, x), which the compiler needs told another way."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class ReLU(torch.autograd.Function):
    """max(0, x) for the compiler, with a backward pass of arithmetic on what came out.

    It equals F.relu, from which the compiler makes a mask and a selection: on a CPU code that costs almost
    as much as the rest of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The activation, of any shape."""
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The gradient where the output is positive, else 0."""
        (positive,) = ctx.saved_tensors
        return gradient * positive.sign()


def relu(x: Tensor) -> Tensor:
    """max(0, x), of any shape."""
    return ReLU.apply(x) if torch.compiler.is_compiling() else F.relu(x)

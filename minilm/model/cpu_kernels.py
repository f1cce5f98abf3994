"""Faster equivalents of what gpt.py computes, not needed to understand the model.

Each function gives the result of the formula named in it, up to rounding. On a GPU only the fused attention
kernel matters; the rest works around what is slow on a CPU.
"""

import ctypes
import os
import shlex
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minilm.errors import InputError
from minilm.model.positions import causal_mask


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(Q Kᵀ / sqrt(D) + mask) V: three (B, H, T, D) -> (B, H, T, D).

    Args:
        query: (B, H, T, D).
        key: (B, H, T, D).
        value: (B, H, T, D).
        mask: (H, T, T), added to the scores; None is the causal mask.
        dropout: of the attention weights.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # On a CPU the fused kernel takes up to twice as long in bfloat16, and several times in the backward
        # pass, as long as (B, H, T, T) fits into the processor's cache.
        batch, heads, time, channels = query.shape
        if mask is None:
            mask = causal_mask(time, query.device)[None]
        # One call for product, scale and mask: each pass over (B, H, T, T) costs as much as the product.
        scores = torch.baddbmm(
            mask.to(query.dtype).repeat(batch if len(mask) > 1 else 1, 1, 1),
            query.flatten(0, 1),
            key.flatten(0, 1).transpose(1, 2),
            alpha=channels**-0.5,
        )
        weights = scores.softmax(-1).view(batch, heads, time, time)
        return F.dropout(weights, dropout) @ value
    if mask is not None:
        mask = mask.to(query.dtype)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
    )


def relu(x: Tensor) -> Tensor:
    """max(0, x) of finite numbers, of any shape; for the compiler as a product.

    From F.relu the compiler makes a mask and a selection in the backward pass: on a CPU code that costs a
    third of a training step.
    """
    return x * x.detach().sign().clamp(min=0) if torch.compiler.is_compiling() else F.relu(x)


def keep_freed_memory() -> None:
    """Tell the C library to reuse the memory that this process frees instead of returning it.

    Each step frees and allocates the same large pieces. Returning them in between costs the kernel
    thousands of page faults a step, up to a tenth of the time. Without glibc nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def prepare_compiler(device: torch.device) -> None:
    """See that torch's compiler finds what it needs.

    Where torch is installed below a folder with a space in its name, it quotes the paths of headers for the
    shell, but not that of its libraries.

    Raises:
        InputError: there is no C++ compiler, which it needs on a CPU.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and not shutil.which(shlex.split(compiler)[0]):
        raise InputError(
            f"compile: the C++ compiler {compiler!r} is missing; install it, or set compile: false"
        )
    from torch.utils import cpp_extension

    if Path(cpp_extension.TORCH_LIB_PATH).is_dir():  # not quoted yet
        cpp_extension.TORCH_LIB_PATH = shlex.quote(cpp_extension.TORCH_LIB_PATH)

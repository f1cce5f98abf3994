"""What does the work: which device, how precisely, how fast it could be, and its memory."""

import ctypes
import functools
import shlex
import sys
import time
from pathlib import Path

import torch

from minilm.errors import InputError


def choose_device(name: str, index: int = 0) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `mps`; `index` says which of several GPUs.

    Raises:
        InputError: this machine or this build of torch lacks the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise InputError(f"device: {name} is not to be had here; take auto or cpu")
    return torch.device(name, index) if name == "cuda" else torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that matrix products are computed in, for `auto`, `fp32` or `bf16`.

    bfloat16 has float32's range and 8 bits of its precision. `auto` takes it where the hardware
    multiplies it faster.
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            known = torch.cpu.get_capabilities() if device.type == "cpu" else {}
            fast = any(known.get(unit, False) for unit in ("avx512_bf16", "amx_bf16"))
        name = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[name]


@functools.cache
def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, measured in half a second.

    The yardstick of model FLOP utilisation: no training on this machine gets past it.
    """
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + 0.5
    while time.perf_counter() < end:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # .item() waits for the result
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def quote_compiler_paths() -> None:
    """Let torch's compiler link also where it is installed below a folder with a space in its name.

    It quotes the paths of headers for the shell, but not that of its libraries.
    """
    from torch.utils import cpp_extension

    if Path(cpp_extension.TORCH_LIB_PATH).is_dir():  # not quoted yet
        cpp_extension.TORCH_LIB_PATH = shlex.quote(cpp_extension.TORCH_LIB_PATH)


def keep_freed_memory() -> None:
    """Tell the C library to reuse the memory that this process frees instead of handing it back.

    Each step frees and takes the same large pieces. Handing them back in between costs the kernel
    thousands of page faults a step, up to a tenth of the time. Elsewhere than on Linux with glibc nothing
    happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)

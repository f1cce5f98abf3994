"""The device that computes: which one, in which precision, and how fast it could be."""

import time
from typing import Any

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
        raise InputError(f"device: {name} is unavailable here; use auto or cpu")
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


def describe_environment(device: torch.device, precision: torch.dtype, processes: int) -> dict[str, Any]:
    """What the bytes of a trained model depend on besides parameters, data and code."""
    return {
        "torch": torch.__version__,
        "device_type": device.type,
        "precision": str(precision).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, measured for a tenth of a second.

    The peak that MFU is a share of, if nothing else runs.
    """
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best, end = float("inf"), time.perf_counter() + 0.1
    while time.perf_counter() < end:
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # .item() waits for the result
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

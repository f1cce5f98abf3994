"""Which device does the work."""

import torch

from minilm.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        InputError: this machine or this build of torch lacks the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_there in available.items() if is_there)
    if not available[name]:
        raise InputError(f"device: {name} is not to be had here; take auto or cpu")
    return torch.device(name)

"""The film of a training: copies of the weights after steps 1, 2, 4, 8, ... and after the last one.

What a model learns first, it learns in few steps; so the steps between two copies double each time. The
explorer page (minilm/report/explorer) shows what the model was able to do at each of them.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from minilm.files import all_or_nothing
from minilm.model.config import MOST_EXPLORED
from minilm.training.distributed import full_state

if TYPE_CHECKING:
    from minilm.training.loop import Training


def frame_steps(steps: int, most: int) -> list[int]:
    """After which of the steps the weights are copied: at most so often, and rather late than early."""
    doubled = [2**power for power in range(steps.bit_length()) if 2**power < steps]
    return [*doubled, steps][-most:] if most else []


def add_frame(training: "Training") -> None:
    """After a step, if it is time, copy the weights into the training's film, by names `step/parameter`.

    Of several processes the first one's film is complete; with `sharding: fsdp` the others' are empty.
    """
    model, params, step = training.model, training.params, training.step
    if step in frame_steps(params.steps, params.film) and model.num_parameters <= MOST_EXPLORED:
        for name, tensor in full_state(model)["model"].items():
            training.film[f"{step}/{name}"] = tensor.to("cpu", torch.float16, copy=True)


def write_film(path: Path, film: dict[str, Tensor]) -> None:
    """Write the copies as a safetensors file whose names are `step/parameter`; without any, it is empty."""
    with all_or_nothing(path.parent) as new:
        save_file(film, new / path.name)

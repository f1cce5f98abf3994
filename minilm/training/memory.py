"""What a training needs of the device's memory, and a sentence for when that is too little."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from minilm.errors import InputError
from minilm.model.gpt import MiniGPT
from minilm.params import TrainParams


def bytes_needed(model: MiniGPT, params: TrainParams, processes: int = 1) -> int:
    """An estimate of the bytes that training takes in a process.

    16 for each parameter: itself, its gradient, and two moments, all in float32. For each character of a
    micro-batch what the backward pass needs of each layer ("Reducing Activation Recomputation in Large
    Transformer Models", Korthikanti et al., 2022), and the logits with their gradient.
    """
    config = model.config
    per_layer = (16 + 2 * config.mlp_ratio) * config.embed_dim + 3 * config.num_heads * config.block_size
    per_character = config.num_layers * per_layer + 3 * config.vocab_size
    characters = params.batch_size * config.block_size // (params.grad_accumulation * processes)
    return 16 * model.num_parameters + 4 * per_character * characters


@contextmanager
def explain_lack_of_memory(model: MiniGPT | None, params: TrainParams, processes: int) -> Iterator[None]:
    """Say how much memory is needed, and what lowers it; without a model that one does not even fit.

    Raises:
        InputError: the block ran out of memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # On a CPU torch has no class for it.
        classes = MemoryError | torch.OutOfMemoryError
        if not isinstance(error, classes) and "allocate memory" not in str(error):
            raise
        if model is None:
            raise InputError(
                "out of memory: the model alone is too large; lower embed_dim, num_layers or ngram_rows"
            ) from error
        needed = bytes_needed(model, params, processes) / 1e9
        raise InputError(
            f"out of memory: training with batch_size {params.batch_size:,}, grad_accumulation "
            f"{params.grad_accumulation} and block_size {params.block_size:,} takes some {needed:,.1f} GB; "
            "lower batch_size or block_size, or raise grad_accumulation, which changes the result by rounding"
        ) from error

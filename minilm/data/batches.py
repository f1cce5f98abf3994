"""Token files on disk, random training batches, and the windows that score a whole split.

All in NumPy; who trains or evaluates moves a batch to torch and to its device.
"""

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from minilm.data.tokenizer import Ids
from minilm.errors import InputError

Batch = npt.NDArray[np.int64]
# Inputs and targets, both (batch, time): the target of a character is the one after it.
Pair = tuple[Batch, Batch]
_FORGET_ABOVE = 32 << 20  # bytes of a token file
_WINDOWS_AT_ONCE = 8  # of such a file


def open_tokens(path: str | Path) -> Ids:
    """The token file as an array on disk, (tokens,): what is not used is not read.

    Raises InputError if there is no such file, or it is damaged.
    """
    try:
        tokens = np.lib.format.open_memmap(path, mode="r")
        if tokens.dtype.kind != "u" or tokens.ndim != 1:
            raise ValueError(f"it holds {tokens.dtype} of shape {tokens.shape}")
        return tokens
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: not a file of token ids: {error}; `dvc repro encode` makes it") from None


def random_batch(tokens: Ids, batch_size: int, block_size: int, seed: int, step: int) -> Pair:
    """The training batch of a step: `batch_size` windows from random places of the tokens, (tokens,).

    It depends on the seed and the step only, so that training can go on from any step. There are more tokens
    than `block_size`.
    """
    rng = np.random.default_rng([seed, step])
    starts = rng.integers(0, len(tokens) - block_size, size=batch_size)
    return _windows(tokens, starts, block_size)


def spaced_batches(tokens: Ids, batch_size: int, block_size: int, count: int) -> Iterator[Pair]:
    """`count` batches of windows at even distances over the tokens, the same at each call.

    A glance at a split that is too long to score whole at each report. A count of 0 takes as many windows
    as cover the split; their distances being even, they overlap a little, and the last batch is smaller.
    """
    width = min(block_size, len(tokens) - 1)
    windows = count * batch_size or -(-(len(tokens) - 1) // width)
    starts = np.linspace(0, len(tokens) - 1 - width, windows).astype(np.int64)
    for first in range(0, windows, batch_size):
        yield _windows(tokens, starts[first : first + batch_size], width)


class ScoringBatch(NamedTuple):
    """Some windows of a split, and which of their predictions count."""

    inputs: Batch  # (batch, time)
    targets: Batch  # (batch, time)
    scored: npt.NDArray[np.bool_]  # (batch, time), True where the prediction counts


def scoring_batches(tokens: Ids, block_size: int, context: int, batch_size: int) -> Iterator[ScoringBatch]:
    """Overlapping windows that score every token of a split once, but for the first.

    A scored token has at least `context` tokens before it in its window, where the split has them.

    Args:
        tokens: (tokens,), at least 2.
        block_size: tokens per window.
        context: tokens that a window only reads, in [0, block_size); the others are scored.
        batch_size: windows per batch.
    """
    predictions = len(tokens) - 1
    width = min(block_size, predictions)
    stride = block_size - context
    # A window ends where the next prediction would be unscored; the last one ends with the split.
    ends = np.minimum(np.arange(width, predictions + stride, stride), predictions)
    already_scored = np.concatenate([[0], ends[:-1]])
    starts = ends - width
    for first in range(0, len(ends), batch_size):
        part = slice(first, first + batch_size)
        scored = np.arange(width) >= (already_scored[part] - starts[part])[:, None]
        yield ScoringBatch(*_windows(tokens, starts[part], width), scored)


def write_tokens(path: str | Path, pieces: Iterable[Ids], dtype: npt.DTypeLike) -> int:
    """Write a .npy file of token ids that come in pieces; returns how many there were.

    Memory does not grow with the file: the header is written again when the length is known, and NumPy
    pads headers so that it then has the same size.
    """
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    count = 0
    with Path(path).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (0,)})
        start = file.tell()
        for piece in pieces:
            count += len(piece)
            file.write(piece.astype(dtype, copy=False).tobytes())
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count,)})
        assert file.tell() == start
    return count


def _windows(tokens: Ids, starts: npt.NDArray[np.integer], width: int) -> Pair:
    """Inputs and targets, both (len(starts), width), in one gather; of a large file in a few."""
    # What was read from the file counts as the process's memory, with a megabyte or two around each window:
    # without forgetting it memory would grow to the size of the corpus. It stays in the kernel's cache.
    large = tokens.nbytes > _FORGET_ABOVE
    file = tokens.base if large and isinstance(tokens.base, mmap.mmap) else None
    at_once = len(starts) if file is None else _WINDOWS_AT_ONCE
    windows = np.empty((len(starts), width + 1), np.int64)
    for first in range(0, len(starts), at_once):
        part = slice(first, first + at_once)
        windows[part] = tokens[starts[part, None] + np.arange(width + 1)]
        if file is not None:
            file.madvise(mmap.MADV_DONTNEED)
    return windows[:, :-1], windows[:, 1:]

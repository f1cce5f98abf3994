"""Checkpoints of a training that is under way, from which it resumes after an interruption.

A checkpoint is one file in torch's own format; its name has the step and the SHA-256 of its content. It is
written under another name and renamed, and the one before it stays, so that whenever the process or the
machine stops, one whole checkpoint is there.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from minilm.errors import TrainingInterrupted
from minilm.files import sha256_of
from minilm.training.distributed import Workers

if TYPE_CHECKING:
    from minilm.training.loop import Training

INPUTS = "inputs.json"
LARGEST_SHARE = 0.005  # of the time that saving may take, whatever the interval


class Snapshots:
    """The checkpoints of one training, in a folder of their own, `interval` seconds apart.

    `inputs`, all that the training's result depends on, lies beside them for `describe_others`.
    """

    def __init__(self, folder: str | Path, interval: float, inputs: Mapping[str, Any] | None = None):
        self.folder, self.interval, self.inputs = Path(folder), interval, dict(inputs or {})
        self._asked = time.monotonic()
        self._next = self._asked + interval

    def due(self) -> bool:
        """Whether it is time to save; a checkpoint's cost is counted from this call."""
        self._asked = time.monotonic()
        return self._asked >= self._next

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the checkpoint after `step`; it and the one before it stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INPUTS).write_text(json.dumps(self.inputs))
        unfinished = self.folder / "unfinished"
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / f"step-{step:010}-{sha256_of(unfinished)}")
        for old in self._files()[:-2]:
            old.unlink()
        now = time.monotonic()
        self._next = now + max(self.interval, (now - self._asked) / LARGEST_SHARE)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is undamaged, or None; damaged ones are reported and removed."""
        for path in reversed(self._files()):
            with suppress(FileNotFoundError):  # another process of this training has just removed it
                if path.name.endswith(sha256_of(path)):
                    return torch.load(path, "cpu", weights_only=True)
                path.unlink()
                print(
                    f"WARNING: {path} is damaged; training resumes from an earlier checkpoint, if any",
                    file=sys.stderr,
                )
        return None

    def remove(self) -> None:
        """Remove all checkpoints: the training is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def describe_others(self) -> str:
        """Where there are none: those of other trainings, if any, and in what the nearest differs."""
        beside = self.folder.parent
        with suppress(OSError, ValueError):  # another process has just written or removed some
            others = [json.loads(path.read_text()) for path in beside.glob(f"*/{INPUTS}")]
            different = [{key for key, _ in self.inputs.items() ^ other.items()} for other in others]
            size = sum(path.stat().st_size for path in beside.glob("*/step-*"))
            nearest = min(filter(None, different), key=len, default=None)
            if nearest and not self._files():
                return (
                    f"{beside} has {size / 1e6:,.1f} MB of checkpoints of other unfinished trainings; "
                    f"the nearest differs in {', '.join(sorted(nearest))}; `make clean` removes them"
                )
        return ""

    def _files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*"))


@contextmanager
def checkpointing(training: "Training", snapshots: Snapshots) -> Iterator[Callable[[], None]]:
    """Resume from the newest checkpoint; yields what saves one after a step, if it is time.

    What it yields raises TrainingInterrupted after SIGINT or SIGTERM, when the checkpoint is saved.
    """
    if state := snapshots.load():
        training.restore(state)
        if training.workers.rank == 0:
            print(
                f"train: resuming from the checkpoint after step {training.step} of {training.params.steps}"
            )
    with interruption() as signals:

        def after_step() -> None:
            due, stop = training.workers.any(snapshots.due(), bool(signals))
            if due or stop:
                start = time.perf_counter()
                state = training.state()
                if training.workers.rank == 0:
                    snapshots.save(training.step, state)
                training.workers.any(False)  # the others wait until it is saved
                training.timed_from += time.perf_counter() - start  # which is no time of training
            if stop:
                raise TrainingInterrupted(
                    f"stopped by {' '.join(signals) or 'another process'} after step {training.step} of "
                    f"{training.params.steps}; the checkpoint is saved, and the same command resumes from it"
                )

        yield after_step


@contextmanager
def one_at_a_time(lock: FileLock, workers: Workers) -> Iterator[None]:
    """Wait for another process of the same training: of a `dvc` that was killed, or of a queue."""
    with ExitStack() as held:
        if workers.rank == 0:
            try:
                held.enter_context(lock.acquire(blocking=False))
            except Timeout:
                print("train: another process runs exactly this training; waiting for it to end", flush=True)
                held.enter_context(lock)
        workers.any(False)  # the others wait for the first
        yield


@contextmanager
def interruption() -> Iterator[list[str]]:
    """A list that receives the name of SIGINT or SIGTERM, which then does not end the process.

    A second Ctrl-C does, with a KeyboardInterrupt. (A second SIGTERM is no sign of impatience: `timeout`
    sends one to the process and one to its group.)
    """
    received: list[str] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)

    in_main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""States of a training that is under way, from which it goes on after an interruption.

A state is one file: the SHA-256 of what follows, in hexadecimal, and torch's own format. It is written
under another name and renamed, and the one before it stays, so that whenever the process or the machine
stops, one whole state is there.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from minilm.files import sha256_of

DIGEST_LENGTH = 64
# Saving may take this share of the time at most, whatever the interval.
LARGEST_SHARE = 0.005


class Snapshots:
    """The saved states of one training.

    Args:
        folder: theirs alone.
        interval: seconds between two of them.
    """

    def __init__(self, folder: str | Path, interval: float):
        self.folder, self.interval = Path(folder), interval
        self._asked = time.monotonic()
        self._next = self._asked + interval

    def due(self) -> bool:
        """Whether it is time to save; asked right before, since the cost of a state is counted from here."""
        self._asked = time.monotonic()
        return self._asked >= self._next

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step`; it and the one before it stay."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / "unfinished"
        with unfinished.open("wb") as file:
            file.write(hashlib.sha256(content).hexdigest().encode())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.folder / f"step-{step:010}")
        for old in self._states()[:-2]:
            old.unlink()
        now = time.monotonic()
        self._next = now + max(self.interval, (now - self._asked) / LARGEST_SHARE)

    def load(self) -> dict[str, Any] | None:
        """The newest state that is undamaged, or None; damaged ones are named and removed."""
        _, content = self._newest()
        return torch.load(io.BytesIO(content), weights_only=True) if content else None

    @property
    def newest_step(self) -> int:
        """The step after which the state that `load` returns was saved; 0 if there is none."""
        return self._newest()[0]

    def remove(self) -> None:
        """Forget all states: the training is finished, or starts anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self) -> tuple[int, bytes]:
        """Step and content of the newest undamaged state; 0 and nothing if there is none."""
        for path in reversed(self._states()):
            with suppress(FileNotFoundError):  # another process of this training has just removed it
                whole = path.read_bytes()
                digest, content = whole[:DIGEST_LENGTH], whole[DIGEST_LENGTH:]
                if hashlib.sha256(content).hexdigest().encode() == digest:
                    return int(path.name.removeprefix("step-")), content
                path.unlink()
                print(
                    f"WARNING: {path} is damaged; training goes on from an earlier state, if any",
                    file=sys.stderr,
                )
        return 0, b""

    def _states(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*"))


def fingerprint(*parts: Any, files: list[Path]) -> str:
    """A name for a training: the same for the same parts, JSON values, and files' contents only."""
    digests = [sha256_of(file) for file in files]
    return hashlib.sha256(json.dumps([parts, digests], sort_keys=True).encode()).hexdigest()[:32]


def loaded_code(root: Path) -> list[Path]:
    """The files below `root` that this process has imported, but for installed packages."""
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    found = {Path(file).resolve() for file in files if file}
    # is_file: some modules that live in no file name one that is not there.
    own = [path for path in found if path.is_relative_to(root) and path.is_file()]
    return sorted(path for path in own if "site-packages" not in path.parts)


@contextmanager
def interruption(enabled: bool = True) -> Iterator[list[str]]:
    """A list that gets the name of SIGINT or SIGTERM instead of the process its end.

    Only in the main thread and if `enabled`; elsewhere the list stays empty, as Python allows no handlers.
    """
    received: list[str] = []
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

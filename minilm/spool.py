"""What MLflow has yet to be told: pages of entries on disk, each kept until all of it has arrived there.

A page is what one process has to tell of one model, in a folder of its own:

    entries.jsonl   an entry a line, oldest first
    files/          copies of the files that entries speak of, as they were then
    progress.json   how much of it has been delivered
    writer.lock     held as long as its process writes; the system lets go of it when that process dies
    delivery.lock   held by the one that delivers it
"""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Entry = dict[str, Any]
ENTRIES, PROGRESS = "entries.jsonl", "progress.json"


class Page:
    """A page as its writer sees it.

    Args:
        root: the project's main folder.
        name: of the stage that writes.
    """

    def __init__(self, root: Path, name: str):
        spool = spool_of(root)
        spool.mkdir(mode=0o700, exist_ok=True)  # what is told may be private, such as a prompt
        # Named by the time, so that pages sort as they were begun.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{time.time_ns()}-{name}-", dir=spool))
        self._lock = FileLock(self.folder / "writer.lock")
        self._lock.acquire()
        self._entries = (self.folder / ENTRIES).open("a", encoding="utf-8")

    def write(self, kind: str, **content: Any) -> None:
        """Add an entry; it survives the process from here on, though not the machine."""
        entry = {"kind": kind, "time": int(time.time() * 1000), **content}
        self._entries.write(json.dumps(entry) + "\n")
        self._entries.flush()

    def keep(self, path: Path) -> str:
        """Copy a file or folder as it is now; returns the copy's name within the page."""
        copy = Path(tempfile.mkdtemp(prefix="", dir=self._files())) / path.name
        if path.is_dir():
            shutil.copytree(path, copy, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, copy)
        return str(copy.relative_to(self.folder))

    def close(self) -> None:
        """Nothing more will be written."""
        self._entries.close()
        self._lock.release()

    def _files(self) -> Path:
        folder = self.folder / "files"
        folder.mkdir(exist_ok=True)
        return folder


def spool_of(root: Path) -> Path:
    """Where the pages of a project lie."""
    return root / ".notebook"


def closed_pages(root: Path) -> list[Path]:
    """The folders of the pages that nobody writes on any more, oldest first."""
    return [folder for folder in sorted(spool_of(root).glob("[0-9]*-*")) if _is_closed(folder)]


def read_entries(folder: Path, first: int = 0) -> list[Entry]:
    """The entries from number `first` on; one that is just being written is not there yet."""
    with (folder / ENTRIES).open(encoding="utf-8") as file:
        lines = file.readlines()[first:]
    return [json.loads(line) for line in lines if line.endswith("\n")]


def delivery_lock(folder: Path) -> FileLock:
    """Keeps two from delivering the same page at once."""
    return FileLock(folder / "delivery.lock")


def _is_closed(folder: Path) -> bool:
    try:
        with FileLock(folder / "writer.lock").acquire(timeout=0.1):
            return (folder / ENTRIES).exists()
    except (Timeout, FileNotFoundError):  # it is being written, or has just been delivered
        return False


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A link costs nothing, and what the stages write is replaced, never changed in place."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)

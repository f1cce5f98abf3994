"""What MLflow has yet to be told: pages of entries on disk, each kept until all of it has arrived there.

A page is what one process has to tell of one model, in a folder of its own below `.notebook`:

    entries.jsonl   an entry a line, oldest first
    files/          copies of the files that entries speak of, as they were then
    writer.lock     held as long as its process writes; the system lets go of it when that process dies
    progress.json   how much of it has been delivered
    trouble.txt     why the last attempt failed, if it did
    deliver.log     what the process that delivers it had to say
"""

import json
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

Entry = dict[str, Any]
ENTRIES, PROGRESS, TROUBLE, LOG = "entries.jsonl", "progress.json", "trouble.txt", "deliver.log"
_WRITER = "writer.lock"
READY, DELIVERED = "ready", "delivered"  # what the process that delivers a page says to its writer
REFUSED = "refused-"  # the beginning of the name of a page that MLflow does not take


class Page:
    """A page as its writer sees it.

    Args:
        root: the project's main folder.
        name: of the stage that writes.

    Raises:
        OSError: it cannot be written; any other method may raise this too.
    """

    def __init__(self, root: Path, name: str):
        spool = spool_of(root)
        spool.mkdir(mode=0o700, exist_ok=True)  # what is told may be private, such as a prompt
        # Named by the time, so that pages sort as they were begun.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{time.time_ns()}-{name}-", dir=spool))
        self._lock = FileLock(self.folder / _WRITER)
        self._lock.acquire()
        self._entries = (self.folder / ENTRIES).open("a", encoding="utf-8")

    def write(self, kind: str, **content: Any) -> None:
        """Add an entry; it survives the process from here on, though not the machine."""
        entry = {"kind": kind, "time": int(time.time() * 1000), **content}
        self._entries.write(json.dumps(entry) + "\n")
        self._entries.flush()

    def new_folder(self) -> Path:
        """An empty folder within the page, for files that an entry will speak of."""
        (self.folder / "files").mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="", dir=self.folder / "files"))

    def keep(self, path: Path) -> str:
        """Copy a file or folder as it is now; returns the copy's name within the page."""
        copy = self.new_folder() / path.name
        if path.is_dir():
            shutil.copytree(path, copy, copy_function=_link_or_copy)
        else:
            _link_or_copy(path, copy)
        return self.name_of(copy)

    def name_of(self, path: Path) -> str:
        """The name within the page by which an entry speaks of a file there."""
        return path.relative_to(self.folder).as_posix()

    def close(self) -> None:
        """Nothing more will be written."""
        try:
            self._entries.close()
        finally:
            self._lock.release()


def spool_of(root: Path) -> Path:
    """Where the pages of a project lie."""
    return root / ".notebook"


def spool_id(root: Path) -> str:
    """A name for this project's spool, which no other clone has, here or on another machine."""
    file = spool_of(root) / "id"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
        return file.read_text()


def store_uri(root: Path) -> str:
    """The address of MLflow's store: $MLFLOW_TRACKING_URI, or else mlflow.db in the project's main folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


def pages(root: Path) -> list[Path]:
    """The folders of all pages, oldest first."""
    return sorted(folder for folder in spool_of(root).glob("[0-9]*-*") if (folder / ENTRIES).exists())


def store_of(folder: Path) -> str | None:
    """The address of the store that a page is for; empty if nothing has been written, none if it is gone."""
    try:
        return next((entry["store"] for entry in read_entries(folder)[:1]), "")
    except FileNotFoundError:  # another process has delivered it
        return None


def is_closed(folder: Path) -> bool:
    """Whether nobody writes on the page any more: its process has closed it, or is dead."""
    if not (folder / ENTRIES).exists():  # another process has delivered it
        return False
    try:
        with FileLock(folder / _WRITER).acquire(blocking=False):
            return True
    except Timeout:
        return False


def read_entries(folder: Path) -> list[Entry]:
    """The page's entries; one that is just being written is not there yet."""
    with (folder / ENTRIES).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.endswith("\n")]


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    """A link costs nothing, and what the stages write is replaced, never changed in place."""
    source = Path(source).resolve()  # DVC's cache may have put a symbolic link there
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)

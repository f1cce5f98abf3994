"""Files: where the stages have theirs, and how they are written whole or not at all, digested, read."""

import csv
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

from minilm.errors import InputError

SPLITS = ("train", "validation", "test")
# What the stages write, in the project's folder or that of an experiment.
RAW, INITIAL, ENCODED = Path("data/raw"), Path("data/initial_model"), Path("data/encoded")
MODEL, FILM, REPORTS = Path("models/minilm"), Path("models/film.safetensors"), Path("reports")


def project_root() -> Path:
    """The main workspace, also while a queued experiment runs in a temporary folder."""
    return Path(os.environ.get("DVC_ROOT", ".")).resolve()


@contextmanager
def all_or_nothing(folder: str | Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when the block ends well.

    If it raises, `folder` stays as it was. What a killed process leaves in the project `make clean` removes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Beside its target, so that moving is a rename on one file system; .gitignore knows the name.
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            file.replace(folder / file.name)


def expand_home(path: str) -> Path:
    """The path with `~` replaced by a home folder, if there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises a RuntimeError if not


def replace_what_cannot_be_shown() -> None:
    """Let a terminal show a question mark for a character that its encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # not so in a notebook
            stream.reconfigure(errors="replace")


def sha256_of(content: str | Path | bytes) -> str:
    """The SHA-256 digest, in hexadecimal, of a file, given by its path, or of bytes."""
    with BytesIO(content) if isinstance(content, bytes) else Path(content).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a stage wrote; InputError if it is damaged."""
    with explained(f"{path} is damaged"):
        return dict(json.loads(path.read_bytes()))


def read_table(path: Path) -> dict[str, list[Any]]:
    """The columns of a CSV file that a stage wrote, numbers but for `kind`; InputError if it is damaged."""
    with explained(f"{path} is damaged"), path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
        columns = dict(zip(names, zip(*rows, strict=True), strict=True))
        return {name: list(cells if name == "kind" else map(float, cells)) for name, cells in columns.items()}


def write_table(path: Path, rows: Sequence[Any], columns: Sequence[str] = ()) -> None:
    """Write named tuples as a CSV file for `read_table`: one per line, all of their fields or some."""
    columns = columns or rows[0]._fields
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(row, column) for column in columns] for row in rows)


def read_pieces(path: str | Path) -> Iterator[str]:
    """The characters of a UTF-8 file as they are, in pieces, so that memory does not grow with it."""
    with Path(path).open(encoding="utf-8", newline="") as file:
        yield from iter(lambda: file.read(1 << 20), "")


@contextmanager
def explained(said: str, remedy: str = "`dvc repro` makes it again") -> Iterator[None]:
    """Let what reading a damaged file raises become an InputError that says what is wrong and what to do."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # of many classes
        reason = " ".join(str(error).split())
        raise InputError(f"{said}: {type(error).__name__}: {reason}; {remedy}") from error

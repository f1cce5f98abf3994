"""Where text comes from: a dataset on the Hugging Face Hub, one's own files, the bundled sample.

Every source is a `Corpus`: three splits that can be read as often as one likes, piece by piece, so that
memory does not grow with the text.
"""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import requests

from minilm.data.provenance import fallback_warning
from minilm.errors import InputError
from minilm.files import SPLITS

SAMPLE_FOLDER = Path(__file__).parent / "sample_text"
WIKITEXT = {name: f"hub:Salesforce/wikitext:{name}-raw-v1" for name in ("wikitext-2", "wikitext-103")}
HUB_TIMEOUT = 6.0  # seconds in which the Hub must answer

Pieces = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Corpus:
    """A text in three splits."""

    origin: str  # where it really comes from, such as `hub:Salesforce/wikitext:wikitext-2-raw-v1`
    splits: Mapping[str, Pieces]  # for each of SPLITS a function that starts reading it
    fallback_for: str | None = None  # the dataset that was asked for, where the sample text replaces it


def load_wikitext(split: str = "train", name: str = "wikitext-2", allow_fallback: bool = True) -> str:
    """One split of WikiText (Merity et al., 2016) as one string, its rows joined as they are.

    Raises:
        InputError: there is no such split or name; or the Hub cannot be reached, the local cache does
            not have it, and the sample text is not allowed in its place.
    """
    if split not in SPLITS or name not in WIKITEXT:
        raise InputError(f"{name} {split}: take one of {', '.join(WIKITEXT)} and of {', '.join(SPLITS)}")
    corpus = open_corpus(name, holdout_fraction=0.1, allow_fallback=allow_fallback)
    if corpus.fallback_for:
        print(fallback_warning(corpus.fallback_for), file=sys.stderr)
    return "".join(corpus.splits[split]())


def open_corpus(
    dataset: str, *, holdout_fraction: float, allow_fallback: bool, path: Path | None = None
) -> Corpus:
    """Find the text that `dataset` names.

    Args:
        dataset: a key of WIKITEXT, hub:owner/name[:config], or the path of a text file or folder.
        holdout_fraction: share of the text that each missing split takes from its end.
        allow_fallback: take the bundled sample when the Hub cannot be reached.
        path: where the text file or folder lies, if not at `dataset`.

    Raises:
        InputError: there is no such dataset, it is no text, or it cannot be reached.
    """
    if (path := path or Path(dataset)).exists() and not is_hub_name(dataset):
        return _text_corpus(dataset, path, holdout_fraction)
    if not is_hub_name(dataset):
        near = get_close_matches(dataset, WIKITEXT, n=1)
        raise InputError(
            f"dataset: there is no text file or folder {dataset!r} (looked at {path.absolute()}), and it is "
            f"no dataset; take {near[0] if near else 'wikitext-2, wikitext-103'} or hub:owner/name[:config]"
        )
    try:
        return _hub_corpus(WIKITEXT.get(dataset, dataset), holdout_fraction)
    except ConnectionError as error:
        if not allow_fallback:
            raise InputError(
                f"dataset: {dataset} could not be read from the Hugging Face Hub ({error}), nor from the "
                "local cache; try again with a network, or set allow_fallback: true for the sample text"
            ) from None
        return sample_corpus(fallback_for=dataset)


def is_hub_name(dataset: str) -> bool:
    """Whether `dataset` names a dataset on the Hub, rather than a path."""
    return dataset in WIKITEXT or dataset.startswith("hub:")


def sample_corpus(fallback_for: str | None = None) -> Corpus:
    """The bundled sample text."""
    pieces = {split: partial(read_text, SAMPLE_FOLDER / f"{split}.txt") for split in SPLITS}
    return Corpus("sample", pieces, fallback_for)


def read_text(path: Path) -> Iterator[str]:
    """The UTF-8 text of a file in pieces; a byte order mark is left out, line ends become newlines.

    Raises:
        InputError: a byte is not UTF-8.
    """
    with path.open("rb") as file:
        text = TextIOWrapper(file, "utf-8-sig")
        try:
            while piece := text.read(1 << 20):
                yield piece
        except UnicodeDecodeError as error:
            # The error knows the bytes that were decoded last, up to where the file was read.
            offset = file.tell() - len(error.object) + error.start
            place = f"byte 0x{error.object[error.start]:02x} at offset {offset:,}"
            raise InputError(f"dataset: {path}: not UTF-8: {place}; save the file as UTF-8") from None


def _text_corpus(dataset: str, path: Path, holdout_fraction: float) -> Corpus:
    """One's own text: a file, or a folder's .txt files in the order of their names.

    A folder of train.txt and nothing but validation.txt and test.txt is taken as these splits.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"dataset: folder {dataset} holds no .txt file")
    named = {file.relative_to(path).as_posix().removesuffix(".txt"): file for file in files}
    if "train" in named and named.keys() <= set(SPLITS):
        splits: dict[str, Pieces] = {split: partial(_joined, [file]) for split, file in named.items()}
    else:
        splits = {"train": partial(_joined, files)}
    for split, pieces in splits.items():
        if not any(map(len, pieces())):
            raise InputError(f"dataset: {named.get(split, dataset)} is empty; it needs some text")
    return Corpus(f"file:{dataset}", _with_holdout(splits, holdout_fraction))


def _joined(files: list[Path]) -> Iterator[str]:
    """The files' texts one after the other, each but the last ending its line."""
    for file in files:
        last = ""
        for last in read_text(file):
            yield last
        if file is not files[-1] and last and not last.endswith("\n"):
            yield "\n"


def _with_holdout(splits: Mapping[str, Pieces], holdout_fraction: float) -> Mapping[str, Pieces]:
    """Give each missing split its share of the training text's end: test the last one, validation before."""
    missing = [split for split in SPLITS if split not in splits]
    if not missing:
        return splits
    text = splits["train"]
    length = sum(map(len, text()))
    share = int(length * holdout_fraction)
    kept = length - share * len(missing)
    ranges = {"train": (0, kept)}
    ranges |= {split: (kept + i * share, kept + (i + 1) * share) for i, split in enumerate(missing)}
    return {s: partial(_cut, text, *ranges[s]) if s in ranges else splits[s] for s in SPLITS}


def _cut(text: Pieces, start: int, stop: int) -> Iterator[str]:
    """The characters from `start` to before `stop`."""
    position = 0
    for piece in text():
        if part := piece[max(0, start - position) : max(0, stop - position)]:
            yield part
        position += len(piece)
        if position >= stop:
            return


def _hub_corpus(dataset: str, holdout_fraction: float) -> Corpus:
    """The dataset hub:owner/name[:config], from the Hub or from the local cache.

    Raises:
        ConnectionError: neither the Hub nor the cache has it to give.
        InputError: the Hub has no such dataset, or it holds no text.
    """
    if not (parts := re.fullmatch("hub:([^/:]+/[^/:]+)(?::(.*))?", dataset)):
        raise InputError(f"dataset: {dataset!r} is not of the form hub:owner/name or hub:owner/name:config")
    repo, config = parts[1], parts[2] or None
    if not (online := _hub_answers(repo)):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when datasets is imported
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    name = dataset.removesuffix(":")
    try:
        found = datasets.load_dataset(repo, config)
    except Exception as error:
        # What is raised differs from case to case; the first line says what happened.
        reason = str(error).strip().split("\n")[0]
        if online and isinstance(error, datasets.exceptions.DatasetNotFoundError | ValueError):
            raise InputError(f"dataset: {name}: {reason}") from None
        raise ConnectionError(reason) from None
    if "train" not in found:
        raise InputError(f"dataset: {name} has no split train, only {', '.join(found)}")
    columns = found["train"].column_names
    if "text" not in columns:
        raise InputError(f"dataset: {name} has no column text, only {', '.join(columns)}")
    # WikiText's rows are lines that bring their own line ends; elsewhere a row is a document.
    row_end = "" if repo == "Salesforce/wikitext" else "\n"
    splits = {split: partial(_read_rows, found[split], row_end) for split in SPLITS if split in found}
    return Corpus(name, _with_holdout(splits, holdout_fraction))


def _hub_answers(repo: str) -> bool:
    """Whether the Hub may be asked and answers within HUB_TIMEOUT; datasets alone would wait for minutes."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answers: list[int] = []

    def ask() -> None:
        with suppress(requests.RequestException):
            answers.append(requests.get(f"{endpoint}/api/datasets/{repo}", timeout=HUB_TIMEOUT).status_code)

    # In a thread, since looking up the host's name obeys no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    # "Not found" and "not allowed" are answers; what they mean, load_dataset says better.
    return bool(answers) and answers[0] < 500


def _read_rows(rows: Any, row_end: str) -> Iterator[str]:
    """The column `text` of a split's Arrow files, some rows at a time."""
    import pyarrow

    for file in rows.cache_files:
        # Read instead of memory-mapped: mapped pages would count as this process's memory.
        with pyarrow.OSFile(file["filename"]) as source, pyarrow.ipc.open_stream(source) as batches:
            for batch in batches:
                texts = (text for text in batch.column("text").to_pylist() if text is not None)
                yield "".join(text if text.endswith(row_end) else text + row_end for text in texts)

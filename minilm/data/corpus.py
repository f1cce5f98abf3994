"""Where text comes from: a dataset on the Hugging Face Hub, one's own files, the bundled sample.

Every source is a `Corpus`: three splits that can be read as often as one likes, piece by piece, so that
memory does not grow with the text.
"""

import codecs
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests

from minilm.data.provenance import fallback_warning
from minilm.errors import InputError
from minilm.files import SPLITS

SAMPLE_FOLDER = Path(__file__).parent / "sample_text"
WIKITEXT = {name: f"hub:Salesforce/wikitext:{name}-raw-v1" for name in ("wikitext-2", "wikitext-103")}
HUB_TIMEOUT = 6.0  # seconds in which the Hub must answer
LEAST_CHARACTERS = 2  # of a split: the first is the context of the second, which is predicted
# Other usual names of the splits' files; `wiki.train.txt` counts as `train.txt`.
OTHER_NAMES = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}

Pieces = Callable[[], Iterator[str]]


@dataclass(frozen=True)
class Corpus:
    """A text in three splits."""

    origin: str  # where it really comes from, such as `hub:Salesforce/wikitext:wikitext-2-raw-v1`
    splits: Mapping[str, Pieces]  # for each of SPLITS a function that starts reading it
    fallback_for: str | None = None  # the dataset that was asked for, where the sample text replaces it
    reason: str = ""  # why it does


def load_wikitext(split: str = "train", name: str = "wikitext-2", allow_fallback: bool = True) -> str:
    """One split of WikiText as one string, its rows joined as they are.

    It comes from "Pointer Sentinel Mixture Models" (Merity et al., 2016).

    Raises InputError if there is no such split or name, or as `open_corpus`.
    """
    if split not in SPLITS or name not in WIKITEXT:
        raise InputError(f"{name} {split}: take one of {', '.join(WIKITEXT)} and of {', '.join(SPLITS)}")
    corpus = open_corpus(name, holdout_fraction=0.1, allow_fallback=allow_fallback)
    if corpus.fallback_for:
        print(f"{fallback_warning(corpus.fallback_for)} ({corpus.reason})", file=sys.stderr)
    return "".join(corpus.splits[split]())


def open_corpus(
    dataset: str,
    *,
    holdout_fraction: float,
    allow_fallback: bool,
    holdout_blocks: int = 1,
    path: Path | None = None,
) -> Corpus:
    """Find the text that `dataset` names; InputError if there is none, it is no text or cannot be reached.

    Args:
        dataset: a key of WIKITEXT, hub:owner/name[:config], or the path of a text file or folder.
        holdout_fraction: share of the text that each missing split takes.
        allow_fallback: take the bundled sample when the Hub cannot be reached and the cache lacks it.
        holdout_blocks: equal blocks of the text from whose ends they take it.
        path: where the text file or folder lies, if not at `dataset`.
    """
    holdout = partial(_with_holdout, fraction=holdout_fraction, blocks=holdout_blocks)
    if not is_hub_name(dataset):
        if (path := path or Path(dataset)).exists():
            return Corpus(f"file:{dataset}", holdout(_own_splits(dataset, path)))
        near = get_close_matches(dataset, WIKITEXT, n=1)
        raise InputError(
            f"dataset: there is no text file or folder {dataset!r} (looked at {path.absolute()}), and it is "
            f"no dataset; take {near[0] if near else 'wikitext-2, wikitext-103'} or hub:owner/name[:config]"
        )
    try:
        name = WIKITEXT.get(dataset, dataset).removesuffix(":")
        return Corpus(name, holdout(_hub_splits(name)))
    except ConnectionError as error:
        if not allow_fallback:
            raise InputError(
                f"dataset: {dataset} could not be read from the Hugging Face Hub ({error}), nor from the "
                "local cache; try again with a network, or set allow_fallback: true for the sample text"
            ) from None
        return sample_corpus(dataset, str(error))


def is_hub_name(dataset: str) -> bool:
    """Whether `dataset` names a dataset on the Hub, rather than a path."""
    return dataset in WIKITEXT or dataset.startswith("hub:")


def sample_corpus(fallback_for: str | None = None, reason: str = "") -> Corpus:
    """The bundled sample text; the arguments are as in Corpus."""
    pieces = {split: partial(read_text, SAMPLE_FOLDER / f"{split}.txt") for split in SPLITS}
    return Corpus("sample", pieces, fallback_for, reason)


def read_text(path: Path) -> Iterator[str]:
    """The UTF-8 text of a file in pieces; a byte order mark is left out, line ends become newlines.

    Raises InputError if it is not UTF-8, or holds NUL bytes, which no text does.
    """
    with path.open("rb") as file:
        text = TextIOWrapper(file, "utf-8-sig")
        try:
            while piece := text.read(1 << 20):
                if "\0" in piece:
                    raise InputError(f"dataset: {path}: holds NUL bytes, so it is no text in UTF-8")
                yield piece
        except UnicodeDecodeError as error:
            # The error knows the bytes that were decoded last, up to where the file was read.
            offset = file.tell() - len(error.object) + error.start
            place = f"byte 0x{error.object[error.start]:02x} at offset {offset:,}"
            file.seek(0)
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            kind, encoding = ("UTF-16", "utf-16") if wide else ("Latin-1 or another 8-bit encoding", "latin1")
            raise InputError(
                f"dataset: {path}: not UTF-8: {place}; it looks like {kind}; to convert it: "
                f"iconv -f {encoding} -t utf-8 {shlex.quote(path.name)} > {shlex.quote('utf8-' + path.name)}"
            ) from None


def _own_splits(dataset: str, path: Path) -> dict[str, Pieces]:
    """The splits of one's own text: of a file, or of a folder's .txt files, hidden ones left out.

    If one of the files is named after a split, each must be; else all, by their names, are one text.
    """
    if not path.is_dir():
        return {"train": partial(read_text, path)}
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() == ".txt" and not file.is_dir())
    files = [file for file in found if not any(p.startswith(".") for p in file.relative_to(path).parts)]
    if not files:
        raise InputError(f"dataset: folder {dataset} holds no .txt file")
    splits: dict[str, Pieces] = {}
    for file in files:
        if not file.is_file():
            raise InputError(f"dataset: {file} is a link to a file that is not there")
        name = file.stem.lower().rpartition(".")[2]
        splits[OTHER_NAMES.get(name, name)] = partial(read_text, file)
    if splits.keys().isdisjoint(SPLITS):
        return {"train": partial(_joined, files)}
    if "train" not in splits or len(splits) < len(files) or not splits.keys() <= set(SPLITS):
        listed = ", ".join(file.relative_to(path).as_posix() for file in files)
        raise InputError(
            f"dataset: folder {dataset} holds {listed}: where one file is named after a split, train.txt "
            "must be there, and nothing else but validation.txt and test.txt; move or rename the others"
        )
    return splits


def _joined(files: list[Path]) -> Iterator[str]:
    """The files' texts one after the other, each but the last ending its line."""
    for file in files:
        last = ""
        for last in read_text(file):
            yield last
        if file is not files[-1] and last and not last.endswith("\n"):
            yield "\n"


def _with_holdout(splits: Mapping[str, Pieces], fraction: float, blocks: int) -> Mapping[str, Pieces]:
    """Give each missing split its share of each block of the training text, test the end of it."""
    sharing = ("train", *(split for split in SPLITS if split not in splits))
    if sharing == ("train",):
        return {split: splits[split] for split in SPLITS}  # the dataset's digest depends on the order
    text = splits["train"]
    length = sum(map(len, text()))
    # Where each stretch of the text ends, and which split has it.
    stretches = [
        (end - later * int((end - start) * fraction), split)
        for start, end in pairwise(length * block // blocks for block in range(blocks + 1))
        for later, split in zip(reversed(range(len(sharing))), sharing, strict=True)
    ]
    return {s: partial(_stretches_of, s, text, stretches) if s in sharing else splits[s] for s in SPLITS}


def _stretches_of(split: str, text: Pieces, stretches: list[tuple[int, str]]) -> Iterator[str]:
    """The characters that the split has of the text."""
    position, piece_start, piece, pieces = 0, 0, "", text()
    for end, owner in stretches:
        while position < end:
            if position == piece_start + len(piece):
                piece_start, piece = position, next(pieces)
            part = piece[position - piece_start : end - piece_start]
            position += len(part)
            if owner == split:
                yield part


def _hub_splits(dataset: str) -> dict[str, Pieces]:
    """The splits of hub:owner/name[:config], from the Hub or from the local cache.

    Raises ConnectionError if neither is there, InputError if the dataset does not exist or is no text.
    """
    if not (parts := re.fullmatch("hub:([^/:]+/[^/:]+)(?::(.*))?", dataset)):
        raise InputError(f"dataset: {dataset!r} is not of the form hub:owner/name or hub:owner/name:config")
    repo, config = parts.groups()
    unreachable = _why_unreachable(repo)
    import datasets

    datasets.config.HF_HUB_OFFLINE = bool(unreachable)  # else datasets would wait for minutes
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(repo, config)
    except Exception as error:  # of many classes; the first cause says what happened
        cause: BaseException = error
        while cause.__cause__:
            cause = cause.__cause__
        if unreachable or isinstance(error, ConnectionError):
            raise ConnectionError(unreachable or _in_short(cause)) from None
        configs: list[str] = []
        with suppress(Exception):  # the error at hand says enough
            configs = [] if config else datasets.get_dataset_config_names(repo)
        if len(configs) > 1:
            raise InputError(
                f"dataset: {dataset} has several configurations; name one, as in {dataset}:{configs[0]}: "
                f"{', '.join(configs)}"
            ) from None
        raise InputError(f"dataset: {dataset} cannot be read: {' '.join(str(cause).split())}") from None
    if "train" not in found:
        raise InputError(f"dataset: {dataset} has no split train, only {', '.join(found)}")
    features = found["train"].features
    if "text" not in features:
        raise InputError(f"dataset: {dataset} has no column text, only {', '.join(features)}")
    if getattr(features["text"], "dtype", "") not in ("string", "large_string"):
        raise InputError(f"dataset: the column text of {dataset} is not text but {features['text']}")
    # WikiText's rows are lines that bring their own line ends; elsewhere a row is a document.
    row_end = "" if repo == "Salesforce/wikitext" else "\n"
    return {split: partial(_read_rows, found[split], row_end) for split in SPLITS if split in found}


def _why_unreachable(repo: str) -> str:
    """Why the Hub may not be asked or does not answer within HUB_TIMEOUT; empty if it does."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    reasons: list[str] = []

    def ask() -> None:
        try:
            status = requests.get(f"{endpoint}/api/datasets/{repo}", timeout=HUB_TIMEOUT).status_code
            # "Not found" and "not allowed" are answers; what they mean, load_dataset says better;
            # "too many requests" (429) it would repeat for a while, and then fail.
            reasons.append(f"it answers with status {status}" if status == 429 or status >= 500 else "")
        except requests.RequestException as error:
            reasons.append(_in_short(error))

    # In a thread, since looking up the host's name obeys no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT)
    return reasons[0] if reasons else f"no answer within {HUB_TIMEOUT:g} s"


def _in_short(error: BaseException) -> str:
    """Such as `SSLError: self-signed certificate`: the last part of a message that nests others."""
    return f"{type(error).__name__}: {str(error).rpartition(': ')[2].rstrip(')')}".rstrip("'\"")


def _read_rows(rows: Any, row_end: str) -> Iterator[str]:
    """The column `text` of a split's Arrow files, some rows at a time."""
    import pyarrow

    for file in rows.cache_files:
        # Read instead of memory-mapped: mapped pages would count as this process's memory.
        with pyarrow.OSFile(file["filename"]) as source, pyarrow.ipc.open_stream(source) as batches:
            for batch in batches:
                texts = (text for text in batch.column("text").to_pylist() if text is not None)
                yield "".join(text if text.endswith(row_end) else text + row_end for text in texts)

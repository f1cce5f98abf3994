"""download: the text that `dataset` names -> data/raw; the model of `init_from` -> data/initial_model."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from minilm.checkpoint import CONFIG, INIT_FROM, TOKENIZER, WEIGHTS, read_info
from minilm.data.corpus import LEAST_CHARACTERS, SAMPLE_FOLDER, is_hub_name, open_corpus
from minilm.data.provenance import Source
from minilm.errors import InputError
from minilm.files import INITIAL, RAW, all_or_nothing, expand_home, project_root
from minilm.params import load_params
from stages import run

# A link to the local text that this stage may read: the bundled sample or one's own. DVC hashes its target,
# and so notices when that changes, wherever it is.
LOCAL_TEXT = Path("data/local_text")


def main() -> None:
    """Write the three splits as they are, and where they come from."""
    all_params = load_params("params.yaml")
    params = all_params.download

    path = None if is_hub_name(params.dataset) else locate(params.dataset)
    corpus = open_corpus(
        params.dataset,
        holdout_fraction=params.holdout_fraction,
        allow_fallback=params.allow_fallback,
        holdout_blocks=params.holdout_blocks,
        path=path,
    )
    with all_or_nothing(RAW) as new:
        characters, digests = {}, {}
        for split, pieces in corpus.splits.items():
            characters[split], digest = 0, hashlib.sha256()
            with (new / f"{split}.txt").open("wb") as file:
                for piece in pieces():
                    characters[split] += len(piece)
                    encoded = piece.encode()
                    digest.update(encoded)
                    file.write(encoded)
            digests[split] = digest.hexdigest()
        # Refused here, before anything is replaced, rather than when training starts.
        all_params.train.require_length(characters["train"])
        for split, length in characters.items():
            if length < LEAST_CHARACTERS:
                raise InputError(
                    f"dataset: of {params.dataset} the {split} split has {length} character(s), but needs "
                    f"{LEAST_CHARACTERS} at least; take a longer text"
                )
        sha256 = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
        source = Source(params.dataset, corpus.origin, corpus.fallback_for, characters, sha256)
        source.save(new / "source.json")
    copy_initial_model(params.init_from)
    point_to(path)
    print(f"download: {source}" + (f" ({corpus.reason})" if corpus.reason else ""))


def copy_initial_model(init_from: str) -> None:
    """Keep the model that training starts with: models/minilm, say, is gone when the train stage runs."""
    with all_or_nothing(INITIAL) as new:
        (new / INIT_FROM).write_text(init_from, encoding="utf-8")
        if init_from:
            folder = project_root() / expand_home(init_from)
            read_info(folder)
            for name in (WEIGHTS, CONFIG, TOKENIZER):
                shutil.copy(folder / name, new)


def locate(dataset: str) -> Path:
    """Where one's own text lies: of what git tracks this checkout's copy, else the main workspace's."""
    root = project_root()
    path = (root / expand_home(dataset)).resolve()
    return Path.cwd() / path.relative_to(root) if is_tracked(path, root) else path


def point_to(path: Path | None) -> None:
    """Make LOCAL_TEXT a link to `path`, or to the bundled sample.

    The link to what git tracks is relative, so that every checkout has its own copy; another is absolute, so
    that temporary experiments find the text too, whose folders hold only what git tracks.
    """
    target = Path(SAMPLE_FOLDER if path is None else path)
    if path is None or is_tracked(path, Path.cwd()):
        target = Path(os.path.relpath(target, LOCAL_TEXT.parent))
    if not LOCAL_TEXT.is_symlink() or LOCAL_TEXT.readlink() != target:
        link = LOCAL_TEXT.with_suffix(".unfinished")
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        except OSError as error:
            raise InputError(
                f"{LOCAL_TEXT} must be a symbolic link, which this file system refuses ({error.strerror}); "
                "move the project to one that has links (on Windows, into WSL's own)"
            ) from None
        link.replace(LOCAL_TEXT)


def is_tracked(path: Path, checkout: Path) -> bool:
    """Whether git tracks the file, or all of the folder, in the checkout."""
    tracked, others = (
        subprocess.run(["git", "ls-files", *flags, "--", path], cwd=checkout, capture_output=True).stdout
        for flags in ([], ["--others"])
    )
    return bool(tracked) and not others


if __name__ == "__main__":
    run(main)

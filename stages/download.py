"""download: the text that `dataset` names -> data/raw/{train,validation,test}.txt and source.json."""

import hashlib
import os
from pathlib import Path

from minilm.data.corpus import LEAST_CHARACTERS, SAMPLE_FOLDER, is_hub_name, open_corpus
from minilm.data.provenance import Source
from minilm.errors import InputError
from minilm.files import all_or_nothing
from minilm.params import load_params
from stages import project_root, run

RAW = Path("data/raw")
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
                    f"{LEAST_CHARACTERS} at least; take a longer text or a larger holdout_fraction"
                )
        sha256 = hashlib.sha256("".join(digests.values()).encode()).hexdigest()
        source = Source(params.dataset, corpus.origin, corpus.fallback_for, characters, sha256)
        source.save(new / "source.json")
    point_to(path)
    print("download:", source, f"({corpus.reason})" if corpus.reason else "")


def locate(dataset: str) -> Path:
    """Where one's own text lies; a temporary experiment finds an untracked file in the main workspace."""
    return path if (path := Path(dataset)).exists() else project_root() / dataset


def point_to(path: Path | None) -> None:
    """Make LOCAL_TEXT a link to `path`, or to the bundled sample."""
    target = SAMPLE_FOLDER if path is None else path.absolute()
    if target.is_relative_to(Path.cwd()):
        # Relative, so that in every checkout it is that checkout's own copy.
        target = Path(os.path.relpath(target, LOCAL_TEXT.parent))
    if not LOCAL_TEXT.is_symlink() or LOCAL_TEXT.readlink() != target:
        LOCAL_TEXT.unlink(missing_ok=True)
        LOCAL_TEXT.symlink_to(target)


if __name__ == "__main__":
    run(main)

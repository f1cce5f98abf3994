"""encode: data/raw -> data/encoded/{train,validation,test}.npy and tokenizer.json; data/initial_model."""

import shutil
from pathlib import Path

import numpy as np

from minilm.checkpoint import CONFIG, INIT_FROM, TOKENIZER, WEIGHTS, read_info
from minilm.data.batches import open_tokens, write_tokens
from minilm.data.provenance import Source
from minilm.data.tokenizer import UNKNOWN_ID, CharTokenizer
from minilm.files import SPLITS, all_or_nothing, read_pieces
from minilm.params import load_params
from stages import project_root, run

RAW, ENCODED, INITIAL = Path("data/raw"), Path("data/encoded"), Path("data/initial_model")


def main() -> None:
    """Make the vocabulary from the training split, or take init_from's, then encode each split."""
    params = load_params("params.yaml").encode
    print("encode:", Source.load(RAW / "source.json"))

    copy_initial_model(params.init_from)
    if params.init_from:
        tokenizer = CharTokenizer.load(INITIAL / TOKENIZER)
    else:
        tokenizer = CharTokenizer.from_pieces(read_pieces(RAW / "train.txt"), params.min_char_count)
    with all_or_nothing(ENCODED) as new:
        tokenizer.save(new / "tokenizer.json")
        for split in SPLITS:
            ids = (tokenizer.encode(piece) for piece in read_pieces(RAW / f"{split}.txt"))
            count = write_tokens(new / f"{split}.npy", ids, tokenizer.dtype)
            unknown = np.count_nonzero(open_tokens(new / f"{split}.npy") == UNKNOWN_ID)
            print(f"encode: {split}.npy has {count:,} tokens, {unknown:,} of them unknown characters")
    print(f"encode: the vocabulary has {tokenizer.vocab_size:,} ids of type {tokenizer.dtype}")


def copy_initial_model(init_from: str) -> None:
    """Keep the model that training starts with: models/minilm, say, is gone when the train stage runs."""
    with all_or_nothing(INITIAL) as new:
        (new / INIT_FROM).write_text(init_from, encoding="utf-8")
        if init_from:
            folder = project_root() / Path(init_from).expanduser()
            read_info(folder)
            for name in (WEIGHTS, CONFIG, TOKENIZER):
                shutil.copy(folder / name, new)


if __name__ == "__main__":
    run(main)

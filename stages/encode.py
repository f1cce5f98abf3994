"""encode: data/raw -> data/encoded/{train,validation,test}.npy and tokenizer.json."""

from pathlib import Path

from minilm.data.batches import write_tokens
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.files import SPLITS, all_or_nothing, read_pieces
from minilm.params import load_params
from stages import run

RAW, ENCODED = Path("data/raw"), Path("data/encoded")


def main() -> None:
    """Make the vocabulary from the training split, then encode each split."""
    params = load_params("params.yaml").encode
    print("encode:", Source.load(RAW / "source.json"))

    tokenizer = CharTokenizer.from_pieces(read_pieces(RAW / "train.txt"), params.min_char_count)
    with all_or_nothing(ENCODED) as new:
        tokenizer.save(new / "tokenizer.json")
        for split in SPLITS:
            ids = (tokenizer.encode(piece) for piece in read_pieces(RAW / f"{split}.txt"))
            count = write_tokens(new / f"{split}.npy", ids, tokenizer.dtype)
            print(f"encode: {split}.npy has {count:,} tokens")
    print(f"encode: the vocabulary has {tokenizer.vocab_size:,} ids of type {tokenizer.dtype}")


if __name__ == "__main__":
    run(main)

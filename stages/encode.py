"""encode: data/raw -> data/encoded/{train,validation,test}.npy and tokenizer.json."""

from minilm.checkpoint import INIT_FROM, TOKENIZER
from minilm.data.batches import write_tokens
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer, describe_unknown
from minilm.files import ENCODED, INITIAL, RAW, SPLITS, all_or_nothing, read_pieces
from minilm.params import load_params
from stages import run


def main() -> None:
    """Make the vocabulary from the training split, or take that of init_from, then encode each split."""
    params = load_params("params.yaml").encode
    print("encode:", Source.load(RAW / "source.json"))

    tokenizer = CharTokenizer.from_pieces(read_pieces(RAW / "train.txt"), params.min_char_count)
    if (INITIAL / INIT_FROM).read_text(encoding="utf-8"):
        characters, tokenizer = tokenizer.characters, CharTokenizer.load(INITIAL / TOKENIZER)
        if unknown := tokenizer.unknown_characters(characters):
            print(f"encode: WARNING: init_from: {describe_unknown(unknown)}; now one unknown character")
    with all_or_nothing(ENCODED) as new:
        tokenizer.save(new / "tokenizer.json")
        for split in SPLITS:
            ids = (tokenizer.encode(piece) for piece in read_pieces(RAW / f"{split}.txt"))
            count = write_tokens(new / f"{split}.npy", ids, tokenizer.dtype)
            print(f"encode: {split}.npy has {count:,} tokens")
    print(f"encode: the vocabulary has {tokenizer.vocab_size:,} ids of type {tokenizer.dtype}")


if __name__ == "__main__":
    run(main)

"""Characters to ids and back."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minilm.errors import InputError
from minilm.files import explained, read_json

UNKNOWN_ID = 0
UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # Unicode's own sign for what cannot be shown
_CODE_POINTS = 0x110000

Ids = npt.NDArray[np.unsignedinteger]


class CharTokenizer:
    """A vocabulary of characters: id 0 is the unknown one, the others follow in Unicode's order.

    Args:
        characters: the known characters, each once.
    """

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters) - {UNKNOWN_CHARACTER}))
        if not self.characters:
            raise InputError("a vocabulary needs at least one character")
        # The smallest type that holds every id keeps token files small.
        self.dtype = np.min_scalar_type(len(self.characters))
        # One table look-up per character encodes a whole text at memory speed.
        self._id_of_code = np.zeros(_CODE_POINTS, self.dtype)
        self._id_of_code[_codes(self.characters)] = np.arange(1, self.vocab_size)
        self._code_of_id = np.concatenate([_codes(UNKNOWN_CHARACTER), _codes(self.characters)])

    @classmethod
    def from_text(cls, text: str, min_count: int = 1) -> "CharTokenizer":
        """The vocabulary of `text`: the characters that occur in it at least `min_count` times."""
        return cls.from_pieces([text], min_count)

    @classmethod
    def from_pieces(cls, pieces: Iterable[str], min_count: int = 1) -> "CharTokenizer":
        """Like `from_text`, for a text that comes in pieces and need not fit into memory."""
        counts = np.zeros(_CODE_POINTS, np.int64)
        for piece in pieces:
            found = np.bincount(_codes(piece))
            counts[: len(found)] += found
        kept = np.flatnonzero(counts >= min_count).astype("<u4")
        if not len(kept):
            raise InputError(f"no character occurs {min_count:,} times in the text; lower min_char_count")
        return cls(kept.tobytes().decode("utf-32-le", "surrogatepass"))

    @property
    def vocab_size(self) -> int:
        """How many ids there are, the unknown character's included."""
        return len(self.characters) + 1

    def encode(self, text: str) -> Ids:
        """The ids of `text`, (characters,); what the vocabulary lacks becomes UNKNOWN_ID."""
        return self._id_of_code[_codes(text)]

    def decode(self, ids: Iterable[int] | Ids) -> str:
        """The text of ids in [0, vocab_size); UNKNOWN_ID becomes UNKNOWN_CHARACTER."""
        ids = np.asarray(ids if hasattr(ids, "__array__") else list(ids), dtype=np.int64).reshape(-1)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise InputError(f"ids must be from 0 to {self.vocab_size - 1}, found {ids.min()} to {ids.max()}")
        return self._code_of_id[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def unknown_characters(self, text: str) -> list[str]:
        """The characters of `text` that the vocabulary lacks, each once, as they come."""
        return [character for character in dict.fromkeys(text) if character not in self.characters]

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON."""
        Path(path).write_text(json.dumps({"characters": self.characters}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "CharTokenizer":
        """Read what `save` wrote; InputError if the file holds no vocabulary."""
        with explained(f"{path}: not a saved tokenizer", "`dvc repro` makes one"):
            characters = read_json(Path(path))["characters"]
            tokenizer = cls(characters)
        if tokenizer.characters != characters:
            raise InputError(f"{path}: its characters are not in order; the ids would change their meaning")
        return tokenizer


def describe_unknown(characters: list[str]) -> str:
    """Name characters that are not in the vocabulary, with their code points, ten at most."""
    named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:10])
    more = f" and {len(characters) - 10} more" if len(characters) > 10 else ""
    return f"the model never saw {named}{more}"


def _codes(text: str) -> npt.NDArray[np.uint32]:
    """Unicode code points, (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")

"""Where the text came from: what data/raw/source.json says, and every later stage repeats."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minilm.files import explained, read_json


@dataclass(frozen=True)
class Source:
    """A text's origin."""

    dataset: str  # what params.yaml asked for
    origin: str  # what it was: `hub:Salesforce/wikitext:wikitext-2-raw-v1`, `file:book.txt` or `sample`
    fallback_for: str | None  # the dataset that the bundled sample replaces, if it does
    characters: dict[str, int]  # the length of each split
    sha256: str  # digest of the three splits' digests

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Source":
        """Read what `save` wrote; InputError if it is damaged, or of a version that knew other fields."""
        content = read_json(path)
        with explained(f"{path} was written by another version of MiniLM"):
            return cls(**content)

    def __str__(self) -> str:
        """One line for the user; loud where the sample text replaces a dataset."""
        if self.fallback_for:
            return fallback_warning(self.fallback_for)
        return f"text from {self.origin}, {self.characters['train']:,} characters to train on"


def fallback_warning(dataset: str) -> str:
    """What the user must know when the sample text replaces a dataset."""
    return (
        f"WARNING: {dataset} could not be downloaded from the Hugging Face Hub; this is the BUNDLED SAMPLE "
        "TEXT, good to try things out, no basis for comparisons. To try again: dvc repro -f download"
    )

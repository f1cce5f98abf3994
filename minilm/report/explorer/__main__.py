"""Compare two models in one page: `python -m minilm.report.explorer A B OUT`, A and B being model folders."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from minilm.data.corpus import SAMPLE_FOLDER
from minilm.errors import UserError
from minilm.files import all_or_nothing
from minilm.generation.config import Sampling
from minilm.params import SampleParams
from minilm.report.explorer.page import explorer_page, model_data

SHOWN = 1500  # characters of the text that the page begins with


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m minilm.report.explorer", description=__doc__)
    parser.add_argument("a", metavar="A", type=Path, help="a folder like models/minilm")
    parser.add_argument("b", metavar="B", type=Path, help="another one")
    parser.add_argument("out", metavar="OUT", type=Path, help="the HTML file to write")
    arguments = parser.parse_args()
    try:
        compare(arguments.a, arguments.b, arguments.out)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


def compare(a: Path, b: Path, out: Path) -> None:
    """Write a page with two models, without what only the reports of their trainings say."""
    shown = {
        "film": [],
        "loss": {"step": [], "train_loss": [], "val_loss": []},
        "heads": [],
        "prompt": SampleParams().prompt,
        "settings": asdict(Sampling()),
        "test_text": (SAMPLE_FOLDER / "test.txt").read_text(encoding="utf-8")[:SHOWN],
    }
    page = explorer_page(f"{a} and {b}", [model_data(folder) | shown for folder in (a, b)], {})
    with all_or_nothing(out.parent) as new:
        (new / out.name).write_text(page, encoding="utf-8")
    print(f"open {out}")


if __name__ == "__main__":
    main()

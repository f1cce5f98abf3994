"""Say whether an exercise is solved, from what the last run wrote: python -m docs.lessons.check 5."""

import operator
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from minilm.checkpoint import read_info
from minilm.errors import UserError
from minilm.files import read_json

LESSONS = Path(__file__).parent
OPERATORS = {"=": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge}


def lessons() -> dict[int, dict[str, Any]]:
    """What experiments.yaml says of each lesson, all values as text."""
    content = (LESSONS / "experiments.yaml").read_text(encoding="utf-8")
    return {int(number): lesson for number, lesson in yaml.load(content, yaml.BaseLoader).items()}


def facts(folder: Path) -> dict[str, Any]:
    """What is true of the run in a project's folder, by the names that its files use.

    Raises InputError if a file is missing or damaged, or they are of different models.
    """
    reports, info = folder / "reports", read_info(folder / "models/minilm")
    training, metrics, evaluation, samples = (
        read_json(reports / f"{name}.json") for name in ("train", "metrics", "evaluation", "samples")
    )
    if not evaluation["model_sha256"] == samples["model_sha256"] == info.model_sha256:
        raise UserError(f"{reports}: evaluation or samples are of another model; run dvc repro")
    heads = [scores for layer in evaluation["heads"] for scores in layer]
    return (
        info.params
        | {"dataset": info.data.dataset, "vocab_size": info.config.vocab_size}
        | {"characters": info.data.characters["train"]}
        | {"validation_characters": info.data.characters["validation"]}
        | training
        | metrics
        | {name: max(scores[name] for scores in heads) for name in ("previous", "induction")}
        | samples["settings"]
        | spelling(samples["samples"], (folder / "data/raw/train.txt").read_text(encoding="utf-8"))
        | {"sample": samples["samples"][0]}
    )


def spelling(samples: list[str], text: str) -> dict[str, float]:
    """How much of the samples is made of words of the text, and how varied they are.

    Returns:
        known_words: share of the words that the text has too. A sample's last word may be cut off and is
            not counted.
        new_pairs: share of the pairs of neighboring words that the text does not have; the rest is copied.
        distinct_words: share of the words that are not a repetition.
    """
    read = re.findall(r"\w+", text.lower())
    written = [re.findall(r"\w+", sample.lower())[:-1] for sample in samples]
    words = [word for sample in written for word in sample]
    pairs = [pair for sample in written for pair in pairwise(sample)]
    vocabulary, known_pairs = set(read), set(pairwise(read))
    return {
        "known_words": sum(word in vocabulary for word in words) / max(1, len(words)),
        "new_pairs": sum(pair not in known_pairs for pair in pairs) / max(1, len(pairs)),
        "distinct_words": len(set(words)) / max(1, len(words)),
    }


def judged(wanted: dict[str, str], found: dict[str, Any]) -> dict[str, bool]:
    """Whether the facts meet each condition, such as `test_loss: <= 2.1` or `<= ngram_loss`, by sentence."""
    said = {}
    for name, condition in wanted.items():
        symbol, limit = condition.split(maxsplit=1)
        value, shown = found[name], lambda fact: f"{fact:.4g}" if isinstance(fact, float) else str(fact)
        if limit in found:
            condition, limit = f"{condition}, which is {shown(found[limit])}", found[limit]
        met = OPERATORS[symbol](value, type(value)(limit))
        said[f"{name} is {shown(value)}, wanted: {condition}"] = met
    return said


def main() -> None:
    """Print how the last run meets each condition; the exit status says whether it meets all."""
    exercises = {str(number): lesson["exercise"] for number, lesson in lessons().items()}
    if len(sys.argv) != 2 or sys.argv[1] not in exercises:
        sys.exit(f"error: name one lesson from 1 to {len(exercises)}: python -m docs.lessons.check 5")
    try:
        said = judged(exercises[sys.argv[1]]["wanted"], facts(Path()))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    for sentence, met in said.items():
        print("yes: " if met else "no:  ", sentence)
    solved = all(said.values())
    print("right" if solved else "not yet: change what has a no, run it, and check again")
    sys.exit(not solved)


if __name__ == "__main__":
    main()

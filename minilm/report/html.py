"""The pages under reports/: HTML that needs nothing but a browser, and no network.

All text goes through Jinja's escaping: what a dataset or a model wrote is shown, never run.
"""

import base64
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minilm.checkpoint import ModelInfo
from minilm.evaluation.metrics import MEANINGS, Meaning
from minilm.params import experiment_command, text_of

MOST_BITS = 8  # the surprisal from which on all characters have the same color
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


class Picture(NamedTuple):
    """A picture of the report page: its title, and a caption that says what it shows and how to read it."""

    title: str
    caption: str


# By the names of their files, in the page's order; each is drawn by a function of minilm.report.plots.
PICTURES = {
    "attention": Picture(
        "Attention",
        "A map for each layer and head. Each row is a character of the prompt or the first sample, each "
        "column one that stands before it; the darker, the more the head attends to it. A dark diagonal is "
        "attention to the character itself, a line beside it to the one before; dark columns are characters "
        "that many later ones attend to.",
    ),
    "loss": Picture(
        "Loss during training",
        "The loss on the training and validation splits, lower is better. If both still fall at the end, "
        "more steps help. If the validation loss rises while the training loss falls, the model overfits: "
        "take more text, dropout or a smaller model. Below is the learning rate.",
    ),
    "loss_by_position": Picture(
        "Loss by context length",
        "The loss on the test split over how many characters the model could look back on. Where the curve "
        "is flat, more context no longer helps; if it still falls at its right end, a larger block_size may.",
    ),
    "calibration": Picture(
        "Calibration",
        "How often the most likely character was the one that came (accuracy), over the probability that the "
        "model gave it (confidence). Below the diagonal the model is overconfident, above it underconfident. "
        "The bars show the share of characters in each bin.",
    ),
    "loss_by_kind": Picture(
        "Loss by kind of character",
        "The loss of each kind of character, and its share of the test split. A space is easy to predict, "
        "the first letter of a word is not.",
    ),
}


def surprisal_page(evaluation: Mapping[str, Any], dataset: str) -> str:
    """A passage of the test split, each character colored by its surprisal.

    Args:
        evaluation: content of reports/evaluation.json.
        dataset: its name.

    Returns:
        The page's HTML.
    """
    passage = evaluation["surprisal"]
    first, text, bits = passage["first"], passage["text"], passage["bits"]
    return _render(
        "surprisal.html",
        spans=[
            (
                " " if character == " " else visible(character),
                int(min(MOST_BITS, surprisal)),
                character == "\n",
            )
            for character, surprisal in zip(text, bits, strict=True)
        ],
        details=[
            [visible(character), surprisal, [[visible(other), share] for other, share in candidates]]
            for character, surprisal, candidates in zip(text, bits, passage["candidates"], strict=True)
        ],
        mean=sum(bits) / len(bits),
        most_bits=MOST_BITS,
        num_parameters=evaluation["num_parameters"],
        first=first,
        last=first + len(bits) - 1,
        dataset=dataset,
    )


def report_page(
    *,
    info: ModelInfo,
    weights_bytes: int,
    training: Mapping[str, Any],
    metrics: Mapping[str, float],
    evaluation: Mapping[str, Any],
    samples: Mapping[str, Any],
    kinds: Mapping[str, Sequence[Any]],
    pictures: Path,
    params: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> str:
    """The page that a person opens after a run.

    Equal runs give equal bytes: it has no times and no names of machines.

    Args:
        info: the model's.
        weights_bytes: size of the weights file.
        training: content of reports/train.json.
        metrics: content of reports/metrics.json.
        evaluation: content of reports/evaluation.json.
        samples: content of reports/samples.json.
        kinds: columns of reports/loss_by_kind.csv, by their names.
        pictures: folder with the PNG files of PICTURES.
        params: the run's parameters, by their names in params.yaml.
        defaults: the same parameters' defaults.

    Returns:
        The page's HTML; it links to surprisal.html and the pictures beside it.
    """
    counted = {
        "unigram model (how often each character occurs)": metrics["unigram_loss"],
        f"{evaluation['ngram_order']}-gram model with back-off": metrics["ngram_loss"],
    }
    guessed = {f"guessing among {info.config.vocab_size:,} characters": math.log(info.config.vocab_size)}
    return _render(
        "report.html",
        info=info,
        num_parameters=evaluation["num_parameters"],
        shape=asdict(info.config),
        weights_bytes=weights_bytes,
        training=training,
        metrics=metrics,
        meanings=[(MEANINGS.get(key, Meaning(key, "", "")), value) for key, value in metrics.items()],
        losses=guessed | counted | {"this transformer": metrics["test_loss"]},
        verdict=_verdict(metrics["test_loss"], counted),
        samples=samples,
        kinds=list(zip(*kinds.values(), strict=True)),
        pictures={
            name: (picture, base64.b64encode((pictures / f"{name}.png").read_bytes()).decode())
            for name, picture in PICTURES.items()
        },
        command=experiment_command(params, defaults),
        params=params,
        defaults=defaults,
    )


def visible(character: str) -> str:
    """A character as it can be seen: a sign for white space, U+0007 for one that has no shape of its own."""
    if character in _SIGNS:
        return _SIGNS[character]
    if not character.isprintable():
        return f"U+{ord(character):04X}"
    # A combining character needs something to stand on.
    return "\N{DOTTED CIRCLE}" + character if unicodedata.category(character[0])[0] == "M" else character


def percent(share: float) -> str:
    """A share of 1, with enough digits for a small one."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.4%}"


def _verdict(loss: float, counted: Mapping[str, float]) -> str:
    """How far the transformer is ahead of the best of the simpler models, or behind it."""
    name, best = min(counted.items(), key=lambda item: item[1])
    saved = (best - loss) / math.log(2)
    share = abs(best - loss) / best
    if abs(saved) < 0.005:
        return f"The transformer does as well as the {name}, the best of the simpler models."
    if saved > 0:
        return (
            f"The transformer needs {saved:.2f} bits per character less than the {name}, the best of the "
            f"simpler models: its loss is {share:.0%} lower."
        )
    return (
        f"The transformer needs {-saved:.2f} bits per character more than the {name}: its loss is "
        f"{share:.0%} higher. More steps, a higher learning rate or a larger model should change that."
    )


def _number(value: float) -> str:
    """Four decimal places, fewer for large numbers."""
    if isinstance(value, int) or 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.2e}"


def _perplexity(loss: float) -> str:
    """E to the loss, also where that is more than a float can hold."""
    perplexity = math.exp(min(loss, 700))
    return f"{perplexity:.2f}" if perplexity < 1000 else _number(perplexity)


def _render(template: str, **values: Any) -> str:
    return _templates.get_template(template).render(values)


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_templates.filters |= {"number": _number, "percent": percent, "perplexity": _perplexity, "setting": text_of}
_templates.globals["LN2"] = math.log(2)

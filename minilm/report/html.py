"""The pages under reports/: HTML that needs nothing but a browser, and no network.

All text goes through Jinja's escaping: what a dataset or a model wrote is shown, never run.
"""

import math
import unicodedata
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minilm.checkpoint import ModelInfo
from minilm.evaluation.metrics import MEANINGS, Meaning
from minilm.model.config import MOST_EXPLORED
from minilm.params import experiment_command, text_of

MOST_BITS = 8  # the surprisal from which on all characters have the same color
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
# By the names of their files, in the page's order; each is drawn by a function of minilm.report.plots.
PICTURES = ("attention", "loss", "loss_by_position", "calibration", "loss_by_kind")

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def surprisal_page(evaluation: Mapping[str, Any], dataset: str) -> str:
    """A passage of the test split, each character colored by its surprisal; from reports/evaluation.json."""
    passage = evaluation["surprisal"]
    characters = zip(passage["text"], passage["bits"], passage["candidates"], strict=True)
    return _templates.get_template("surprisal.html").render(
        evaluation,
        details=[
            [visible(character), surprisal, [[visible(other), share] for other, share in candidates]]
            for character, surprisal, candidates in characters
        ],
        running=[character if combines(character) else visible(character) for character in passage["text"]],
        most_bits=MOST_BITS,
        dataset=dataset,
    )


def report_page(
    *,
    info: ModelInfo,
    weights_bytes: int,  # size of the weights file
    training: Mapping[str, Any],  # content of reports/train.json
    metrics: Mapping[str, float],  # of metrics.json
    evaluation: Mapping[str, Any],  # of evaluation.json
    samples: Mapping[str, Any],  # of samples.json
    kinds: Mapping[str, Sequence[Any]],  # columns of loss_by_kind.csv, by their names
    pictures: Path,  # folder with the PNG files of PICTURES
    params: Mapping[str, Any],  # of the run, by their names in params.yaml
    defaults: Mapping[str, Any],  # of the same parameters
    explored: bool,  # whether explorer.html holds the model
) -> str:
    """The page that a person opens after a run; it links to the other pages and the pictures beside it.

    Equal runs give equal bytes: it has no times and no names of machines.
    """
    return _templates.get_template("report.html").render(
        info=info,
        shape=asdict(info.config),
        weights_bytes=weights_bytes,
        training=training,
        metrics=metrics,
        evaluation=evaluation,
        meanings=[(MEANINGS.get(key, Meaning(key, "", "")), value) for key, value in metrics.items()],
        samples=samples,
        kinds=list(zip(*kinds.values(), strict=True)),
        pictures={name: b64encode((pictures / f"{name}.png").read_bytes()).decode() for name in PICTURES},
        command=experiment_command(params, defaults),
        params=params,
        defaults=defaults,
        explored=explored,
    )


def no_explorer_page() -> str:
    """What takes the place of explorer.html if the model is too large for it, since DVC wants the file."""
    return _templates.get_template("no_explorer.html").render()


def visible(character: str) -> str:
    """A character as it can be seen: a sign for white space, U+0007 for one that has no shape of its own."""
    if character in _SIGNS:
        return _SIGNS[character]
    if not character.isprintable():
        return f"U+{ord(character):04X}"
    return "\N{DOTTED CIRCLE}" + character if combines(character) else character


def combines(character: str) -> bool:
    """Whether it is shown with the character before it, and needs something to stand on where it is alone."""
    return unicodedata.category(character[0]).startswith("M")


def percent(share: float) -> str:
    """A share of 1, with enough digits for a small one."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.4%}"


def _number(value: float) -> str:
    """Four decimal places, fewer for large numbers."""
    if isinstance(value, int) or 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.2e}"


def _perplexity(loss: float) -> str:
    """E to the loss, also where that is more than a float can hold."""
    perplexity = math.exp(min(loss, 700))
    return f"{perplexity:.2f}" if perplexity < 1000 else _number(perplexity)


_templates.filters |= {"number": _number, "percent": percent, "perplexity": _perplexity, "setting": text_of}
_templates.filters["ln"] = math.log
_templates.globals["most_explored"] = MOST_EXPLORED

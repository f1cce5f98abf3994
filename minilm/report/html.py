"""The pages under reports/: HTML that needs no network and no other program than a browser.

All text goes through Jinja's escaping: what a data set or a model wrote is shown, never run.
"""

import base64
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from minilm.checkpoint import ModelCard

# The surprise, in bits, from which on all characters have the same colour.
MOST_BITS = 8
_SIGNS = {" ": "␣", "\n": "⏎", "\t": "⇥"}


class _Meaning(NamedTuple):
    name: str
    unit: str  # "%" shows a share as per cent
    text: str


MEANINGS = {
    "test_loss": _Meaning(
        "loss", "nats per character", "mean surprise at the next character; what training lowers"
    ),
    "test_bits_per_char": _Meaning(
        "bits per character", "bits", "the same in bits: what compressing the text with this model would cost"
    ),
    "test_perplexity": _Meaning(
        "perplexity", "characters", "the model is as unsure as between so many equally likely characters"
    ),
    "test_word_perplexity": _Meaning(
        "word perplexity", "words", "the same for whole words, to compare with models of words"
    ),
    "test_accuracy": _Meaning("accuracy", "%", "characters that were the model's first guess"),
    "test_top5_accuracy": _Meaning("top-5 accuracy", "%", "characters among the model's five first guesses"),
    "test_calibration_error": _Meaning(
        "calibration error", "%", "mean distance between how sure the model is and how often it is right"
    ),
    "unknown_char_rate": _Meaning("unknown characters", "%", "characters that the vocabulary lacks"),
    "unigram_loss": _Meaning(
        "unigram loss",
        "nats per character",
        "of a model that knows how often each character occurs, and no more",
    ),
    "ngram_loss": _Meaning(
        "n-gram loss", "nats per character", "of a model that counted what follows each few characters"
    ),
}


class _Picture(NamedTuple):
    title: str
    caption: str  # what one sees and how to read it


# By the function of minilm.plots that draws it, in the page's order.
PICTURES = {
    "loss_curves": _Picture(
        "Loss during training",
        "The loss on the training and on the validation text, lower is better. If both still fall at the "
        "end, more steps pay. If the validation loss rises while the training loss falls, the model learns "
        "its text by heart: take more text, dropout or a smaller model. Below is the learning rate.",
    ),
    "loss_by_position": _Picture(
        "What more context buys",
        "The loss on the test text over how many characters the model could look back on. Where the curve "
        "is flat, more context no longer helps; if it still falls at its right end, a larger block_size may "
        "pay.",
    ),
    "reliability": _Picture(
        "Can its confidence be trusted?",
        "Of the characters that the model was so sure of, the share that it guessed right. On the diagonal "
        "it is right as often as it says, below it is too sure of itself, above it is too modest. The bars "
        "show how many characters each point rests on.",
    ),
    "loss_by_kind": _Picture(
        "What is hard",
        "The loss by kind of character, and how much of the text each kind is. A space is easy to foresee, "
        "the letter that begins a word is not.",
    ),
}


def surprisal_page(
    characters: Sequence[str],
    bits: Sequence[float],
    candidates: Sequence[Sequence[tuple[str, float]]],
    model_line: str,
) -> str:
    """A stretch of text, each character coloured by how much it surprised the model.

    Args:
        characters: (characters,), as they follow each other.
        bits: (characters,), the surprise at each: -log2 of the probability that the model gave it.
        candidates: for each character what the model held for likeliest, and with what probability (0 to 1).
        model_line: one line on the model and the text.

    Returns:
        The page's HTML.
    """
    surprises = [float(surprise) for surprise in bits]
    details = [
        [
            visible(character),
            round(surprise, 2),
            [[visible(other), round(float(p), 4)] for other, p in likeliest],
        ]
        for character, surprise, likeliest in zip(characters, surprises, candidates, strict=True)
    ]
    return _render(
        "surprisal.html",
        spans=[
            (
                " " if character == " " else visible(character),
                int(min(MOST_BITS, surprise)),
                character == "\n",
            )
            for character, surprise in zip(characters, surprises, strict=True)
        ],
        details=details,
        mean=sum(surprises) / max(1, len(surprises)),
        most_bits=MOST_BITS,
        model_line=model_line,
    )


def samples_fragment(
    prompt: str, settings: Mapping[str, Any], samples: Sequence[str], warnings: Sequence[str]
) -> str:
    """The samples as a piece of HTML, with the picture attention.png that lies beside the page.

    Args:
        prompt: what the samples continue.
        settings: of the sampling, by their names in params.yaml.
        samples: whole texts, which begin with the prompt.
        warnings: what the reader must know first.
    """
    continuations = [sample.removeprefix(prompt) for sample in samples]
    return _render(
        "samples.html", prompt=prompt, settings=settings, continuations=continuations, warnings=warnings
    )


def samples_script(fragment: str) -> str:
    """JavaScript for reports/samples.js that puts the fragment into the report page.

    The page is written by the evaluate stage and the samples by the sample stage, and neither depends on the
    other. So the page takes the samples in when it is opened, and shows the latest of both.
    """
    return f'document.getElementById("samples").innerHTML = {json.dumps(fragment)};\n'


def report_page(
    *,
    card: "ModelCard",
    num_parameters: int,
    weights_bytes: int,
    metrics: Mapping[str, float],
    baselines: Mapping[str, float],
    kinds: Sequence[Any],
    pictures: Mapping[str, Path],
    params: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> str:
    """The page that a person opens after a run.

    Equal runs give equal bytes: it has no times and no names of machines.

    Args:
        card: the model's.
        num_parameters: of the model.
        weights_bytes: size of the weights file.
        metrics: reports/metrics.json's; test_loss, test_bits_per_char, test_perplexity, test_accuracy and
            unknown_char_rate must be there.
        baselines: losses of simpler models on the same characters, in nats per character, by the models' names.
        kinds: rows with .kind, .loss (nats), .accuracy and .share (0 to 1), .characters.
        pictures: PNG files by the names of the functions in minilm.plots, see PICTURES.
        params: the run's parameters, by their names in params.yaml.
        defaults: the same parameters' defaults.

    Returns:
        The page's HTML; it wants surprisal.html and samples.js beside it.
    """
    losses = {f"guessing among {card.config.vocab_size:,} characters": math.log(card.config.vocab_size)}
    losses |= baselines
    return _render(
        "report.html",
        card=card,
        shape=asdict(card.config),
        num_parameters=num_parameters,
        weights_bytes=weights_bytes,
        metrics=metrics,
        meanings=[(MEANINGS.get(key, _Meaning(key, "", "")), value) for key, value in metrics.items()],
        losses=losses | {"this transformer": metrics["test_loss"]},
        verdict=_verdict(metrics["test_loss"], baselines),
        kinds=kinds,
        pictures=[
            (picture, base64.b64encode(pictures[name].read_bytes()).decode())
            for name, picture in PICTURES.items()
            if name in pictures
        ],
        command=experiment_command(params, defaults),
        params=params,
        defaults=defaults,
    )


def experiment_command(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The shell command that runs the pipeline with these parameters where params.yaml has the defaults."""
    changed = [f"{key}={_hydra(value)}" for key, value in params.items() if value != defaults[key]]
    return shlex.join(["dvc", "exp", "run", *(part for change in changed for part in ("-S", change))])


def visible(character: str) -> str:
    """A character as it can be seen: a sign for white space, U+0007 for what has no shape of its own."""
    if character in _SIGNS:
        return _SIGNS[character]
    if not character.isprintable():
        return f"U+{ord(character):04X}"
    # A combining character needs something to stand on.
    return "\N{DOTTED CIRCLE}" + character if unicodedata.category(character[0])[0] == "M" else character


def _verdict(loss: float, baselines: Mapping[str, float]) -> str:
    """How far the transformer is ahead of the best of the simpler models, or behind it."""
    name, best = min(baselines.items(), key=lambda item: item[1])
    saved = (best - loss) / math.log(2)
    if abs(saved) < 0.005:
        return f"The transformer does as well as the {name}, the best of the simpler models."
    share = abs(best - loss) / best
    if saved > 0:
        return (
            f"The transformer needs {saved:.2f} bits per character less than the {name}, the best of the "
            f"simpler models: it is {share:.0%} ahead."
        )
    return (
        f"The transformer needs {-saved:.2f} bits per character more than the {name}: it is {share:.0%} behind "
        "what counting reaches. More steps, a higher learning rate or a larger model should change that."
    )


def _hydra(value: Any) -> str:
    """A value as `dvc exp run -S` reads it, which is Hydra's grammar."""
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else str(value)
    other_types = ("true", "false", "null", "nan", "inf")
    if re.fullmatch(r"[A-Za-z_/][\w./:-]*", value, re.ASCII) and value.lower() not in other_types:
        return value
    # A backslash escapes a quote, or itself where a quote or the end follows.
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), value)
    return f'"{escaped}"'


def _number(value: float) -> str:
    """Four digits behind the point, fewer for large numbers."""
    if isinstance(value, int) or 1000 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.2e}"


def _perplexity(loss: float) -> str:
    """E to the loss, also of a model that has diverged, where that is more than a float can hold."""
    perplexity = math.exp(min(loss, 700))
    return f"{perplexity:.2f}" if perplexity < 1000 else _number(perplexity)


def _percent(share: float) -> str:
    """A share of 1, with enough digits for a small one."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else f"{share:.4%}"


def _setting(value: Any) -> str:
    """A parameter's value as params.yaml writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return (
        json.dumps(value, ensure_ascii=False)
        if value == "" or str(value) != str(value).strip()
        else str(value)
    )


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
_templates.filters |= {"number": _number, "percent": _percent, "perplexity": _perplexity, "setting": _setting}
_templates.globals["LN2"] = math.log(2)

"""The explorer: one page that holds a model and runs it in the browser, without server or network.

It is explorer.html with its style, its scripts and the model's numbers inside. The weights are float32, so
that the page computes what PyTorch does. The frames of the film (minilm/training/film.py) are rounded to 63
levels, which compress to less than six bits a number.
"""

import json
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors.numpy import load_file

from minilm.checkpoint import RESTORE, TOKENIZER, WEIGHTS, read_info
from minilm.data.tokenizer import UNKNOWN_CHARACTER, CharTokenizer
from minilm.errors import InputError
from minilm.files import explained
from minilm.model.config import MOST_EXPLORED

SOURCES = Path(__file__).parent
ENGINE = (  # what the page's worker runs too
    "tokenizer.js",
    "positions.js",
    "local_context.js",
    "engine.js",
    "kv_cache.js",
    "sampling.js",
    "worker.js",
)
PANELS = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.glob("panels/*.js"))
HIGHEST_LEVEL = 31  # of a rounded weight, with a sign
LONGEST_FILM = 12_000_000  # bytes of its frames; a page of two million parameters can still be mailed

Floats = npt.NDArray[np.floating]


def explorer_page(title: str, models: Sequence[Mapping[str, Any]], links: Mapping[str, str]) -> str:
    """The page of one model, or of two that it compares; equal models give an equal page.

    Args:
        title: of the page.
        models: `model_data`'s keys, and those that `run_data` adds.
        links: addresses of other pages by what is linked.
    """
    data = json.dumps({"models": models, "links": links}, ensure_ascii=False, separators=(",", ":"))
    templates = Environment(loader=FileSystemLoader(SOURCES), autoescape=True, undefined=StrictUndefined)
    return templates.get_template("explorer.html").render(
        title=title,
        data=data.replace("<", "\\u003c"),  # so that no text can end the script element
        style=_sources("explorer.css"),
        engine=_sources(*ENGINE),
        scripts=_sources("client.js", *PANELS, "app.js"),
    )


def model_data(folder: Path) -> dict[str, Any]:
    """What the page holds of a model folder.

    Raises InputError if the folder is missing or damaged, or the model too large for the page.
    """
    info, weights = read_info(folder), read_weights(folder / WEIGHTS)
    names = sorted(weights)
    sizes = [weights[name].size for name in names]
    if sum(sizes) > MOST_EXPLORED:
        raise InputError(
            f"{folder}: the model has {sum(sizes):,} parameters; the explorer runs {MOST_EXPLORED:,} at most"
        )
    offsets = np.cumsum(sizes) - sizes
    return {
        "name": str(folder),
        "dataset": "the bundled sample text" if info.data.fallback_for else info.data.dataset,
        "config": asdict(info.config),
        "vocabulary": [UNKNOWN_CHARACTER, *CharTokenizer.load(folder / TOKENIZER).characters],
        "tensors": {
            name: {"shape": weights[name].shape, "offset": int(offset)}
            for name, offset in zip(names, offsets, strict=True)
        },
        "weights": _compressed(np.concatenate([weights[name].ravel() for name in names]).astype("<f4")),
        "steps": info.params["steps"],
    }


def read_weights(path: Path) -> dict[str, Floats]:
    """The arrays of a safetensors file by their names; InputError if it is damaged."""
    with explained(f"{path} is damaged", RESTORE):
        return load_file(path)


def run_data(
    film: Mapping[str, Floats],  # content of models/film.safetensors
    training: Mapping[str, Any],  # of reports/train.json
    curves: Mapping[str, Sequence[float]],  # of loss.csv, its columns
    evaluation: Mapping[str, Any],  # of evaluation.json
    samples: Mapping[str, Any],  # of samples.json
) -> dict[str, Any]:
    """What the page holds of the training, evaluation and samples of a model.

    The film ends with the model itself; `keep: best` may have taken it from before the last step.
    """
    frames: dict[int, dict[str, Floats]] = {}
    for key, weights in film.items():
        step, name = key.split("/")
        if int(step) < training["step"]:
            frames.setdefault(int(step), {})[name] = weights
    return {
        "film": film_data(frames),
        "steps": training["step"],
        "loss": {key: curves[key] for key in ("step", "train_loss", "val_loss")},
        "heads": evaluation["heads"],
        "prompt": samples["prompt"],
        "settings": samples["settings"] | {"seed": samples["settings"]["sample_seed"]},
        "test_text": evaluation["surprisal"]["text"],
    }


def film_data(frames: Mapping[int, Mapping[str, Floats]]) -> list[dict[str, Any]]:
    """Frames by their steps -> what the page holds of each, in the order of the steps.

    Of the last one there are its levels, of each other their difference from those of the next frame:
    most are small and compress well. Where this is longer than LONGEST_FILM, the earliest are left out.
    """
    shown: list[dict[str, Any]] = []
    levels_after: npt.NDArray[np.int8] = np.zeros(1, np.int8)
    room = LONGEST_FILM
    for step in sorted(frames, reverse=True):
        levels, scales = quantized(frames[step])
        weights = _compressed(levels - levels_after)
        room -= len(weights)
        if room < 0:
            break
        shown.insert(0, {"step": step, "weights": weights, "scales": b64encode(scales.tobytes()).decode()})
        levels_after = levels
    return shown


def quantized(weights: Mapping[str, Floats]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Whole numbers of at most HIGHEST_LEVEL, and a scale for each row of a matrix and for each vector.

    Both are in the order of the tensors' names; a weight is about its number times its row's scale.
    """
    levels, scales = [], []
    for _, tensor in sorted(weights.items()):
        rows = tensor.reshape(-1, tensor.shape[-1]).astype("<f4")
        scale = np.maximum(np.abs(rows).max(1), np.finfo("<f4").tiny) / HIGHEST_LEVEL
        levels.append(np.rint(rows / scale[:, None]).astype(np.int8).ravel())
        scales.append(scale)
    return np.concatenate(levels), np.concatenate(scales).astype("<f4")


def _compressed(numbers: npt.NDArray[Any]) -> str:
    return b64encode(zlib.compress(numbers.tobytes())).decode()


def _sources(*names: str) -> str:
    return "\n".join((SOURCES / name).read_text(encoding="utf-8") for name in names)

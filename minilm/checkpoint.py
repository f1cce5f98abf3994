"""The model folder: weights, shape, vocabulary, and what made them, in one place.

    model.safetensors   the weights
    config.json         the model's shape, the parameters and data that made it, digests of the other files
    tokenizer.json      the vocabulary

Nothing is ever unpickled, and parts that do not belong together are refused.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from minilm.errors import InputError
from minilm.files import all_or_nothing, sha256_of
from minilm.model import MiniGPT, ModelConfig
from minilm.source import Source
from minilm.tokenizer import CharTokenizer

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class ModelCard:
    """What config.json says of a model.

    Attributes:
        config: the model's shape.
        params: the parameters that made it, by their names in params.yaml.
        data: where the text came from.
        made_with: torch's version, the device and the thread count, on which the bytes depend.
        model_sha256: digest of model.safetensors, the model's name in the lab notebook.
    """

    config: ModelConfig
    params: dict[str, Any]
    data: Source
    made_with: dict[str, Any]
    model_sha256: str


def save(
    folder: str | Path,
    model: MiniGPT,
    tokenizer: CharTokenizer,
    params: dict[str, Any],
    data: Source,
    made_with: dict[str, Any],
) -> None:
    """Write the model folder; the last three arguments are as in ModelCard."""
    assert tokenizer.vocab_size == model.config.vocab_size
    with all_or_nothing(folder) as new:
        save_file({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, new / WEIGHTS)
        tokenizer.save(new / TOKENIZER)
        card = {
            "model": asdict(model.config),
            "params": params,
            "data": asdict(data),
            "made_with": made_with,
            "sha256": {name: sha256_of(new / name) for name in (WEIGHTS, TOKENIZER)},
        }
        (new / CONFIG).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: str | Path, device: torch.device | str = "cpu") -> tuple[MiniGPT, CharTokenizer]:
    """The model, in evaluation mode, and its tokenizer.

    Raises:
        InputError: the folder is missing or damaged, or its parts do not belong together.
    """
    folder = Path(folder)
    card = read_card(folder)
    tokenizer = CharTokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab_size != card.config.vocab_size:
        raise InputError(
            f"{folder}: {TOKENIZER} has {tokenizer.vocab_size} ids, {CONFIG} says {card.config.vocab_size}"
        )
    model = MiniGPT(card.config)
    try:
        model.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{folder}: {WEIGHTS} does not fit {CONFIG}: {reason}") from None
    return model.to(device).eval(), tokenizer


def read_card(folder: str | Path) -> ModelCard:
    """What the folder says of its model, after a check that all of it is there and undamaged.

    Raises:
        InputError: as for `load`.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name} is missing; train a model with `dvc repro` or get it with `dvc pull`"
            )
    try:
        card = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config, digests = ModelConfig(**card["model"]), card["sha256"]
        digests = {name: digests[name] for name in (WEIGHTS, TOKENIZER)}
        described = ModelCard(
            config, card["params"], Source(**card["data"]), card["made_with"], digests[WEIGHTS]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: {CONFIG} is damaged: {error!r}") from None
    for name, digest in digests.items():
        if sha256_of(folder / name) != digest:
            raise InputError(
                f"{folder}: {name} is damaged or of another model: its SHA-256 is not the one in {CONFIG}; "
                "`dvc checkout --force` brings the last trained model back"
            )
    return described

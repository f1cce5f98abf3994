"""The model folder: weights, shape, vocabulary, and what made them, in one place.

    model.safetensors   the weights
    config.json         the model's shape, the parameters and data that made it, digests of the other files
    tokenizer.json      the vocabulary

Nothing is ever unpickled, and parts that do not belong together are refused. To read what the folder says
of its model takes no torch.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.errors import InputError
from minilm.files import all_or_nothing, explained, sha256_of
from minilm.model.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from minilm.model.gpt import MiniGPT

WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
INIT_FROM = "init_from.txt"  # beside the copy of a model that training starts with: where it was
RESTORE = "`dvc checkout --force` restores the last trained model"


@dataclass(frozen=True)
class ModelInfo:
    """What config.json says of a model."""

    config: ModelConfig
    params: dict[str, Any]  # that trained it, by their names in params.yaml
    data: Source
    environment: dict[str, Any]  # torch's version, device, precision, threads: the bytes depend on them
    model_sha256: str  # of model.safetensors, by which MLflow's run of the model is found
    tokenizer_sha256: str
    folder_sha256: str  # of config.json, which holds the digests of the other two files
    initial_sha256: str = ""  # of the weights that training started with, if not with random ones


def save(
    folder: str | Path,
    model: "MiniGPT",
    tokenizer: CharTokenizer,
    params: dict[str, Any],
    data: Source,
    environment: dict[str, Any],
    initial_sha256: str = "",
) -> None:
    """Write the model folder; the last four arguments are as in ModelInfo."""
    from safetensors.torch import save_file

    assert tokenizer.vocab_size == model.config.vocab_size
    with all_or_nothing(folder) as new:
        save_file({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, new / WEIGHTS)
        tokenizer.save(new / TOKENIZER)
        info = {
            "model": asdict(model.config),
            "params": params,
            "data": asdict(data),
            "environment": environment,
            "sha256": {name: sha256_of(new / name) for name in (WEIGHTS, TOKENIZER)},
        } | ({"initial_sha256": initial_sha256} if initial_sha256 else {})
        (new / CONFIG).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load(folder: str | Path, device: "torch.device | str" = "cpu") -> "tuple[MiniGPT, CharTokenizer]":
    """The model, in evaluation mode, and its tokenizer.

    Raises InputError if the folder is missing or damaged, or its parts do not belong together.
    """
    from safetensors.torch import load_file

    from minilm.model.gpt import MiniGPT

    folder = Path(folder)
    info = read_info(folder)
    tokenizer = CharTokenizer.load(folder / TOKENIZER)
    if tokenizer.vocab_size != info.config.vocab_size:
        raise InputError(
            f"{folder}: {TOKENIZER} has {tokenizer.vocab_size} ids, {CONFIG} says {info.config.vocab_size}"
        )
    model = MiniGPT(info.config)
    with explained(f"{folder}: {WEIGHTS} does not fit {CONFIG}", RESTORE):
        model.load_state_dict(load_file(folder / WEIGHTS))
    return model.to(device).eval(), tokenizer


def start_from(folder: Path, model: "MiniGPT") -> str:
    """Give the model the weights of the one in the folder; returns their SHA-256.

    Raises InputError as `load`, or if their configurations differ in more than what may change in training.
    """
    initial, _ = load(folder)
    changeable = {"attention_dropout", "mlp_dropout", "logit_softcap", "zero_init_projections"}
    changeable |= set() if model.config.position == "learned" else {"block_size"}
    differing = [
        f"{key} {theirs}, not {ours}"
        for (key, theirs), ours in zip(
            asdict(initial.config).items(), asdict(model.config).values(), strict=True
        )
        if theirs != ours and key not in changeable
    ]
    if differing:
        raise InputError(f"init_from: the model to start with has {', and '.join(differing)}")
    model.load_state_dict(initial.state_dict())
    return sha256_of(folder / WEIGHTS)


def read_info(folder: str | Path) -> ModelInfo:
    """What the folder says of its model, after a check that all of it is there and undamaged.

    Raises InputError as `load`.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            remedy = "train a model with `dvc repro` or get it with `dvc pull`"
            raise InputError(f"{folder}: {name} is missing; {remedy}")
    info = parse_info((folder / CONFIG).read_bytes(), folder)
    for name, digest in ((WEIGHTS, info.model_sha256), (TOKENIZER, info.tokenizer_sha256)):
        if sha256_of(folder / name) != digest:
            reason = f"is damaged or of another model: its SHA-256 is not the one in {CONFIG}"
            raise InputError(f"{folder}: {name} {reason}; {RESTORE}")
    return info


def parse_info(content: bytes, where: str | Path) -> ModelInfo:
    """What the content of a config.json says; `where` it was, for the message.

    Raises InputError if it is damaged, or written by a version that knew other fields.
    """
    with explained(f"{where}: {CONFIG} is damaged", RESTORE):
        found = json.loads(content)
    remedy = "train again, or use that version"
    with explained(f"{where}: {CONFIG} was written by another version of MiniLM", remedy):
        return ModelInfo(
            ModelConfig(**found["model"]),
            dict(found["params"]),
            Source(**found["data"]),
            dict(found["environment"]),
            found["sha256"][WEIGHTS],
            found["sha256"][TOKENIZER],
            sha256_of(content),
            found.get("initial_sha256", ""),
        )

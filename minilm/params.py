"""What params.yaml may hold: one pydantic class per stage, and the rules between keys.

YAML guesses types, and its versions differ (`3e-4` is text in 1.1, `yes` is true). So every value is read as
text and the schema alone decides what it means.
"""

import json
import re
import shlex
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from minilm.errors import InputError
from minilm.generation.config import Sampling
from minilm.model.config import SEED, Activation, ModelConfig, Normalization, Position

Layers = Annotated[int, Field(ge=1, le=256)]
Size = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Limit = Annotated[float, Field(ge=0, le=10**6)]
Text = Annotated[str, Field(min_length=1)]
Context = Literal["auto"] | Annotated[int, Field(ge=0, le=65535)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Schedule = Literal["constant", "linear", "cosine"]


def _key(default: Any, description: str, **bounds: Any) -> Any:
    return Field(default, description=description, **bounds)


DEVICE = _key("auto", "device of the tensors; auto takes cuda, then mps, then cpu")


class StageParams(BaseModel):
    """Parameters of one stage: typed, complete and unchangeable."""

    model_config = {"extra": "forbid", "frozen": True, "allow_inf_nan": False}

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        if problems := _cross_problems(self.model_dump()):
            raise ValueError("; ".join(problems))
        return self


class DownloadParams(StageParams):
    """Where the text comes from."""

    dataset: Text = _key(
        "wikitext-2", "wikitext-2, wikitext-103, hub:owner/name[:config], a text file or a folder of .txt"
    )
    allow_fallback: bool = _key(True, "train on the bundled sample text when the Hub cannot be reached")
    holdout_fraction: float = _key(0.1, "share of the text that each missing split takes", gt=0, le=0.4)
    holdout_blocks: int = _key(1, "equal blocks of the text from whose ends it is taken", ge=1, le=10000)
    init_from: str = _key(
        "", "model folder whose weights and vocabulary training starts with; empty for none"
    )


class EncodeParams(StageParams):
    """How characters become numbers."""

    min_char_count: Count = _key(1, "rarer characters of the training split become the unknown character")


class TrainParams(StageParams):
    """The model and the recipe that trains it."""

    block_size: Size = _key(ModelConfig.block_size, "characters that the model sees at once")
    embed_dim: int = _key(ModelConfig.embed_dim, "width of the residual stream", ge=1, le=16384)
    num_heads: Layers = _key(ModelConfig.num_heads, "attention heads per block; must divide embed_dim")
    num_layers: Layers = _key(ModelConfig.num_layers, "transformer blocks")
    mlp_ratio: int = _key(
        ModelConfig.mlp_ratio, "width of the MLP's hidden layer, in embed_dims", ge=1, le=64
    )
    position: Position = _key(ModelConfig.position, "how positions are encoded")
    activation: Activation = _key(ModelConfig.activation, "non-linearity of the MLP; relu2 is relu squared")
    normalization: Normalization = _key(ModelConfig.normalization, "of the residual stream before each part")
    qk_norm: bool = _key(ModelConfig.qk_norm, "normalize each head's queries and keys too")
    tied_embeddings: bool = _key(ModelConfig.tied_embeddings, "use the token embedding as output layer too")
    biases: bool = _key(ModelConfig.biases, "a bias in each linear layer and LayerNorm")
    attention_dropout: Decay = _key(ModelConfig.attention_dropout, "dropout on the attention weights")
    mlp_dropout: Decay = _key(ModelConfig.mlp_dropout, "dropout on the MLP's output")
    logit_softcap: Limit = _key(ModelConfig.logit_softcap, "smooth limit of the logits' size; 0 means none")
    zero_init_projections: bool = _key(ModelConfig.zero_init_projections, "start residual branches at zero")
    token_shift: Decay = _key(
        ModelConfig.token_shift, "share of each part's input that comes from the character before"
    )
    ngram_embedding: int = _key(
        ModelConfig.ngram_embedding, "longest n-gram with an embedding of its own; 1 is none", ge=1, le=8
    )
    ngram_rows: int = _key(
        ModelConfig.ngram_rows, "maximum rows of an n-gram table; more n-grams are hashed", ge=1, le=2**24
    )
    batch_size: Size = _key(32, "windows of block_size characters per step, on all devices together")
    grad_accumulation: Size = _key(1, "micro-batches per step, to save memory")
    optimizer: Literal["adamw", "muon"] = _key("adamw", "muon updates the blocks' matrices, AdamW the rest")
    learning_rate: float = _key(0.0003, "the optimizer's step size at its highest", gt=0, le=10)
    learning_rate_schedule: Schedule = _key("constant", "how the learning rate falls after the warmup")
    min_learning_rate_ratio: Share = _key(0.1, "share of learning_rate that linear and cosine fall to")
    warmup_steps: int = _key(0, "steps in which the learning rate first rises from zero", ge=0, le=10**9)
    adam_beta1: Decay = _key(0.9, "AdamW's first-moment decay rate")
    adam_beta2: Decay = _key(0.95, "AdamW's second-moment decay rate")
    weight_decay: float = _key(0.1, "weight decay of matrices and embeddings", ge=0, le=10)
    grad_clip: Limit = _key(1.0, "largest gradient norm; 0 means no limit")
    steps: Count = _key(200, "optimizer steps")
    eval_interval: Count = _key(50, "steps between two reports of the losses")
    eval_batches: int = _key(8, "validation batches in a report's loss; 0 takes all", ge=0, le=10**6)
    keep: Literal["last", "best"] = _key("last", "the weights to save; best has the lowest validation loss")
    film: int = _key(
        16, "maximum copies of the weights to keep for the explorer's film; 0 keeps none", ge=0, le=64
    )
    precision: Literal["auto", "fp32", "bf16"] = _key("auto", "of matrix products; auto is bf16 if faster")
    compile: bool = _key(False, "compile the model first; pays off in long training")
    checkpoint_interval: float = _key(60.0, "seconds between two checkpoints to resume from", gt=0, le=10**6)
    sharding: Literal["none", "fsdp"] = _key("none", "fsdp shards the model among the launcher's processes")
    seed: Seed = _key(SEED, "seed of weights, batches and dropout")
    launcher: Text = _key("python", "what starts the train stage")
    device: Device = DEVICE

    def require_length(self, characters: int) -> None:
        """Refuse a training split too short for two windows of block_size, each with its last target."""
        if characters < self.block_size + 2:
            raise InputError(
                f"block_size: {self.block_size:,} needs a training split of at least {self.block_size + 2:,} "
                f"characters, but it has {characters:,}; take a longer text or a smaller block_size"
            )


class EvaluateParams(StageParams):
    """How the test split is scored."""

    eval_context: Context = _key(
        "auto", "minimum context of each scored character; auto is half of block_size"
    )
    device: Device = DEVICE


class SampleParams(StageParams):
    """What the model is asked to write."""

    prompt: Text = _key("The ", "text that the samples continue")
    num_samples: int = _key(3, "samples to write", ge=1, le=10000)
    max_new_tokens: int = _key(Sampling.max_new_tokens, "characters after the prompt", ge=1, le=10**7)
    temperature: float = _key(
        Sampling.temperature, "below 1 safer, above 1 more varied, 0 always the most likely", ge=0, le=100
    )
    top_k: int = _key(Sampling.top_k, "draw from the k most likely characters; 0 means all", ge=0, le=10**7)
    top_p: float = _key(Sampling.top_p, "draw from the most likely that sum to this probability", gt=0, le=1)
    min_p: Share = _key(Sampling.min_p, "exclude what has less than this share of the highest probability")
    stop: str = _key(Sampling.stop, "a sample ends before this text; empty for none")
    sample_seed: Seed = _key(Sampling.seed, "seed of the first sample; the next one takes the next seed")
    device: Device = DEVICE


class ReportParams(EncodeParams, DownloadParams):
    """What the report says of the data; all else is in the files that it reads."""


class Params(NamedTuple):
    """All of params.yaml, a class per stage."""

    download: DownloadParams
    encode: EncodeParams
    train: TrainParams
    evaluate: EvaluateParams
    sample: SampleParams
    report: ReportParams


STAGES: dict[str, type[StageParams]] = dict(Params.__annotations__)
FIELDS: dict[str, FieldInfo] = {
    key: field for stage in STAGES.values() for key, field in stage.model_fields.items()
}


def load_params(path: str | Path, overrides: Mapping[str, str] | None = None) -> Params:
    """Read and check the parameter file.

    Args:
        path: a flat YAML file that holds every key.
        overrides: values that take the place of the file's, as text.

    Raises:
        InputError: listing every problem at once, a line each.
    """
    raw = {**_read_yaml(Path(path)), **(overrides or {})}
    problems = []
    for key in [key for key in raw if key not in FIELDS]:
        near = get_close_matches(str(key), FIELDS, n=1)
        problems.append(f"{key}: no such parameter" + (f"; did you mean {near[0]}?" if near else ""))
    values = {}
    for key, field in FIELDS.items():
        if key not in raw:
            problems.append(f"{key}: missing; its default is {default_text(key)}")
            continue
        try:
            values[key] = _adapter(field).validate_python(raw[key])
        except ValidationError:
            problems.append(f"{key}: {raw[key]!r} is not allowed; it must be {allowed(key)}")
    problems += _cross_problems(values)
    if problems:
        where = f"{path} with the values given" if overrides else path
        raise InputError("\n".join(f"{where}: {problem}" for problem in problems))
    return Params(*(cls(**{key: values[key] for key in cls.model_fields}) for cls in STAGES.values()))  # type: ignore[arg-type]


def load_recipe(path: str | Path) -> dict[str, str]:
    """A recipe as overrides for `load_params`: its own values, and the defaults of the others of its kind.

    Its kind are the train stage's parameters, but for those that do not change the model: where to train,
    and what else to keep. So a recipe means the same whatever params.yaml holds.
    """
    no_effect = {"launcher", "device", "sharding", "checkpoint_interval", "film"}
    kind = TrainParams.model_fields.keys() - no_effect
    return {key: default_text(key) for key in kind} | _read_yaml(Path(path))


def allowed(key: str) -> str:
    """What the parameter may be, in words."""
    return _allowed(_adapter(FIELDS[key]).json_schema())


def default_text(key: str) -> str:
    """The parameter's default as params.yaml writes it."""
    return text_of(FIELDS[key].default)


def text_of(value: Any) -> str:
    """A parameter's value as params.yaml writes it; text that is empty or has white space in quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if re.search(r"^$|\s", str(value)) else str(value)


def parse_values(texts: Mapping[str, str]) -> dict[str, Any]:
    """Those of the texts that are parameters, as values; one that the schema does not allow stays text."""
    values: dict[str, Any] = {}
    for key in [key for key in FIELDS if key in texts]:
        try:
            values[key] = _adapter(FIELDS[key]).validate_python(texts[key])
        except ValidationError:
            values[key] = texts[key]
    return values


def experiment_command(params: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The shell command that runs the pipeline with these parameters where params.yaml has the defaults."""
    changed = [f"{key}={_hydra(value)}" for key, value in params.items() if value != defaults[key]]
    return shlex.join(["dvc", "exp", "run", *(part for change in changed for part in ("-S", change))])


def _hydra(value: Any) -> str:
    """A value as `dvc exp run -S` reads it, in Hydra's grammar."""
    if not isinstance(value, str):
        return text_of(value)
    other_types = ("true", "false", "null", "nan", "inf")
    if re.fullmatch(r"[A-Za-z_/][\w./:-]*", value, re.ASCII) and value.lower() not in other_types:
        return value
    # A backslash escapes a quote, or itself where a quote or the end follows.
    escaped = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + ('\\"' if match[2] else ""), value)
    return f'"{escaped}"'


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = YAML(typ="base", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run this in the project's folder") from None
    except DuplicateKeyError as error:
        raise InputError(f"{path}: {error.problem}; remove one of them") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: must hold lines of the form `key: value`")
    return raw


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[field.annotation, field], config=StageParams.model_config)  # type: ignore[arg-type]


def _cross_problems(values: Mapping[str, Any]) -> list[str]:
    """The rules between keys, for those keys that are there and valid by themselves."""
    problems = []
    width, heads = values.get("embed_dim"), values.get("num_heads")
    batch, parts = values.get("batch_size"), values.get("grad_accumulation")
    context, block = values.get("eval_context"), values.get("block_size")
    warmup, steps = values.get("warmup_steps"), values.get("steps")
    if width and heads and width % heads:
        problems.append(
            f"embed_dim: {width} is not divisible by num_heads, {heads}; take {width + heads - width % heads}"
        )
    elif width and heads and values.get("position") == "rope" and width // heads % 2:
        problems.append(
            f"position: rope rotates pairs of channels, but embed_dim {width} / num_heads {heads} is odd; "
            f"take embed_dim {2 * width}"
        )
    if batch and parts and batch % parts:
        problems.append(f"grad_accumulation: {parts} does not divide batch_size, {batch}")
    if warmup and steps and warmup > steps:
        problems.append(
            f"warmup_steps: {warmup} must be at most steps, {steps}; lower it too, to {steps // 10}, say"
        )
    if values.get("optimizer") == "muon" and values.get("sharding") == "fsdp":
        problems.append("optimizer: muon needs whole matrices, but sharding: fsdp splits them; take adamw")
    if isinstance(context, int) and block and context >= block:
        problems.append(f"eval_context: {context} must be below block_size, {block}; or take auto")
    return problems


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    match schema:
        case {"anyOf": options}:
            return " or ".join(map(_allowed, options))
        case {"enum": names}:
            return " or ".join(names)
        case {"const": name}:
            return name
        case {"type": "boolean"}:
            return "true or false"
        case {"type": "string"}:
            return "text that is not empty" if "minLength" in schema else "text"
    low = f"from {schema['minimum']:,}" if "minimum" in schema else f"above {schema['exclusiveMinimum']:,}"
    high = f"to {schema['maximum']:,}" if "maximum" in schema else f"to below {schema['exclusiveMaximum']:,}"
    return f"a {'whole ' if schema['type'] == 'integer' else ''}number {low} {high}"

"""The model card: the README.md of an exported model, as the Hugging Face Hub reads it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, Template

from minilm.checkpoint import ModelInfo
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.deploy.hf_architectures import Architecture
from minilm.evaluation.metrics import MEANINGS


def model_card(
    info: ModelInfo,
    tokenizer: CharTokenizer,
    architecture: Architecture,
    num_parameters: int,
    metrics: Mapping[str, float],
) -> str:
    """The card, in Markdown with YAML front matter.

    Args:
        info: the model's.
        tokenizer: the model's.
        architecture: the stock architecture of the export.
        num_parameters: of the model.
        metrics: by their keys in reports/metrics.json; empty if they are unknown.
    """
    prompt = "The "
    if tokenizer.unknown_characters(prompt) or info.config.block_size <= len(prompt):
        prompt = next(filter(str.isalpha, tokenizer.characters), tokenizer.characters[0])
    template = Template(
        Path(__file__).with_suffix(".md").read_text(encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return template.render(
        head=yaml.safe_dump(
            _metadata(info.data, architecture, metrics), sort_keys=False, allow_unicode=True, width=math.inf
        ),
        info=info,
        architecture=architecture,
        num_parameters=num_parameters,
        num_characters=len(tokenizer.characters),
        metrics=[(MEANINGS[key], value) for key, value in metrics.items()],
        prompt=json.dumps(prompt),
        data=_lines(asdict(info.data)),
        settings=_lines(asdict(info.config) | info.params | info.environment),
    )


def find_metrics(folder: Path, model_sha256: str) -> dict[str, float]:
    """The metrics of a model folder PROJECT/models/NAME from PROJECT/reports, if they are this model's."""
    reports = folder.resolve().parent.parent / "reports"
    try:
        evaluation, metrics = (
            json.loads((reports / name).read_text(encoding="utf-8"))
            for name in ("evaluation.json", "metrics.json")
        )
    except OSError:
        return {}
    if evaluation["model_sha256"] != model_sha256:
        return {}
    return {key: metrics[key] for key in MEANINGS if key in metrics}


def _metadata(data: Source, architecture: Architecture, metrics: Mapping[str, float]) -> dict[str, Any]:
    """What the Hub sorts and shows models by."""
    metadata: dict[str, Any] = {
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["minilm", "character-level", architecture.model_type],
    }
    kind, _, name = data.origin.partition(":")
    name, _, subset = name.partition(":")
    if data.origin == "sample" or name == "Salesforce/wikitext":
        metadata["language"] = ["en"]
    if kind == "hub":
        metadata["datasets"] = [name]
    # JSON, which the Hub makes of this, has no infinity.
    results = [
        {"type": key.removeprefix("test_"), "name": MEANINGS[key].name, "value": value}
        for key, value in metrics.items()
        if key.startswith("test_") and math.isfinite(value)
    ]
    if results:
        dataset = {"name": data.origin, "type": name if kind == "hub" else "text", "split": "test"}
        if subset:
            dataset["config"] = subset
        task = {"type": "text-generation", "name": "Text generation"}
        result = {"task": task, "dataset": dataset, "metrics": results}
        metadata["model-index"] = [{"name": "MiniLM", "results": [result]}]
    return metadata


def _lines(values: Mapping[str, Any]) -> str:
    """Names and values as YAML, one per line, whatever characters are in them."""
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())

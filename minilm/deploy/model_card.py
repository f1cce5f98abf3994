"""The model card: the README.md of an exported model, as the Hugging Face Hub reads it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template

from minilm.checkpoint import ModelInfo
from minilm.data.tokenizer import CharTokenizer
from minilm.deploy.hf_architectures import Architecture
from minilm.evaluation.metrics import MEANINGS
from minilm.files import REPORTS, read_json
from minilm.params import SampleParams

# Of the texts that MiniLM knows, which are English; a model can reproduce parts of its text.
LICENSES = {"sample": "mit", "hub:Salesforce/wikitext": "cc-by-sa-3.0"}


def model_card(
    info: ModelInfo,
    tokenizer: CharTokenizer,
    architecture: Architecture,
    num_parameters: int,
    metrics: Mapping[str, float],
) -> str:
    """The card, in Markdown with YAML front matter; the metrics may be none."""
    prompt = SampleParams().prompt
    if tokenizer.unknown_characters(prompt) or info.config.block_size <= len(prompt):
        prompt = next(filter(str.isalpha, tokenizer.characters), tokenizer.characters[0])
    kind, *hub = info.data.origin.split(":")
    template = Template(
        Path(__file__).with_suffix(".md").read_text(encoding="utf-8"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return template.render(
        info=info,
        architecture=architecture,
        num_parameters=num_parameters,
        num_characters=len(tokenizer.characters),
        hub=hub if kind == "hub" else [],
        license=LICENSES.get(":".join([kind, *hub[:1]]), "unknown"),
        metrics=[(MEANINGS[key], value) for key, value in metrics.items()],
        hub_metrics=[
            (key.removeprefix("test_"), MEANINGS[key].name, value)
            for key, value in metrics.items()
            if key.startswith("test_") and math.isfinite(value)  # the Hub's JSON has no infinity
        ],
        prompt=json.dumps(prompt),
        data=_lines(asdict(info.data)),
        settings=_lines(asdict(info.config) | info.params | info.environment),
    )


def find_metrics(folder: Path, model_sha256: str) -> dict[str, float]:
    """The metrics of a model folder PROJECT/models/NAME from PROJECT/reports, if they are this model's."""
    reports = folder.resolve().parent.parent / REPORTS
    try:
        is_this_model = read_json(reports / "evaluation.json")["model_sha256"] == model_sha256
        metrics = read_json(reports / "metrics.json") if is_this_model else {}
    except OSError:
        return {}
    return {key: metrics[key] for key in MEANINGS if key in metrics}


def _lines(values: Mapping[str, Any]) -> str:
    """Names and values as YAML, one per line, whatever characters are in them."""
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())

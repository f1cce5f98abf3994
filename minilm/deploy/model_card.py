"""The model card: the README.md of an exported model, as the Hugging Face Hub reads it."""

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from minilm.checkpoint import ModelCard
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.deploy.hf_architectures import Architecture
from minilm.errors import InputError
from minilm.pages import MEANINGS
from minilm.rows import NoNotebookError, Rows


def model_card(
    card: ModelCard,
    tokenizer: CharTokenizer,
    architecture: Architecture,
    num_parameters: int,
    metrics: Mapping[str, float],
) -> str:
    """The card, in Markdown with YAML before it.

    Args:
        card: the model's.
        tokenizer: the model's.
        architecture: the stock one that it was exported as.
        num_parameters: of the model.
        metrics: by their names in MLflow; none if they are not known.
    """
    prompt = "The "
    if tokenizer.unknown_characters(prompt) or card.config.block_size <= len(prompt):
        prompt = next(filter(str.isalpha, tokenizer.characters), tokenizer.characters[0])
    head = yaml.safe_dump(
        _metadata(card.data, architecture, metrics), sort_keys=False, allow_unicode=True, width=math.inf
    )
    return _templates.get_template("model_card.md").render(
        head=head,
        card=card,
        architecture=architecture,
        num_parameters=num_parameters,
        num_characters=len(tokenizer.characters),
        metrics=[(MEANINGS[key], value) for key, value in metrics.items()],
        prompt=json.dumps(prompt),
        data=_lines(asdict(card.data)),
        settings=_lines(asdict(card.config) | card.params | card.made_with),
    )


def find_metrics(model_sha256: str) -> dict[str, float]:
    """The test metrics of MLflow's row of the model; none, where there is no store or no such row.

    It only reads: it makes neither a store nor an experiment.

    Args:
        model_sha256: digest of the model's weights, by which its row is tagged.
    """
    root = Path(os.environ.get("DVC_ROOT", ".")).absolute()
    try:
        rows = Rows(root).all(f"tags.model_sha256 = '{model_sha256}'")
        found = next((row.data.metrics for row in rows if "test_loss" in row.data.metrics), {})
    except NoNotebookError:
        return {}
    except InputError as error:
        # A card without metrics is better than none, whatever ails the store.
        print(f"WARNING: MLflow could not be read, the card has no metrics: {error}", file=sys.stderr)
        return {}
    return {key: found[key] for key in MEANINGS if key in found}


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
    # JSON, which the Hub makes of this, knows no infinity.
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
    """Names and values as YAML, one a line, whatever is in them."""
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())


_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,  # Markdown
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)

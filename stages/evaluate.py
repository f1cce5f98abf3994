"""evaluate: models/minilm and the texts -> in reports/ what it is worth, in figures, pictures and pages."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minilm import checkpoint, pages, plots, tracking
from minilm.checkpoint import ModelCard
from minilm.data.batches import open_tokens
from minilm.data.tokenizer import CharTokenizer, Ids
from minilm.device import choose_device, choose_precision
from minilm.evaluation.ngram import baselines
from minilm.evaluation.scoring import evaluate, surprisals
from minilm.files import all_or_nothing
from minilm.model.gpt import MiniGPT
from minilm.params import FIELDS, Params, load_params
from stages import project_root, run

MODEL, ENCODED, REPORTS = Path("models/minilm"), Path("data/encoded"), Path("reports")
SHOWN = 1500  # characters of reports/surprisal.html


def main() -> None:
    """Score every character of the test split, and make it understood."""
    params = load_params("params.yaml")
    with tracking.run_of(project_root(), "evaluate", MODEL) as notebook:
        metrics, written = score(params)
        notebook.log_results({"eval_context": params.evaluate.eval_context}, metrics, written)


def score(params: Params) -> tuple[dict[str, float], list[Path]]:
    """The metrics of the test split, and the files that tell all of it."""
    card = checkpoint.read_card(MODEL)
    print("evaluate:", card.data)
    device = choose_device(params.evaluate.device)
    model, tokenizer = checkpoint.load(MODEL, device)
    test = open_tokens(ENCODED / "test.npy")
    context = None if params.evaluate.eval_context == "auto" else params.evaluate.eval_context
    result = evaluate(model, tokenizer, test, context, precision=precision_of(card, device))
    counted = baselines(open_tokens(ENCODED / "train.npy"), test, tokenizer.vocab_size)
    metrics = {
        name if name == "unknown_char_rate" else f"test_{name}": value
        for name, value in result.metrics().items()
    } | {"unigram_loss": counted.unigram, "ngram_loss": counted.ngram}
    simpler = {
        "unigram model (how often each character occurs)": counted.unigram,
        f"{counted.order}-gram model with back-off": counted.ngram,
    }
    with all_or_nothing(REPORTS) as new:
        (new / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        write_csv(new / "loss_by_position.csv", result.by_position)
        write_csv(new / "loss_by_kind.csv", result.by_kind)
        write_csv(new / "calibration.csv", result.reliability)
        with (REPORTS / "loss.csv").open(newline="") as file:
            plots.loss_curves(list(csv.DictReader(file)), new / "loss.png")
        plots.loss_by_position(result.by_position, new / "loss_by_position.png")
        plots.loss_by_kind(result.by_kind, new / "loss_by_kind.png")
        plots.reliability(result.reliability, new / "calibration.png", result.calibration_error)
        page = surprisal_page(model, tokenizer, test, context, card)
        (new / "surprisal.html").write_text(page, encoding="utf-8")
        made_with = params_of(card, params)
        page = pages.report_page(
            card=card,
            num_parameters=model.num_parameters,
            weights_bytes=(MODEL / checkpoint.WEIGHTS).stat().st_size,
            metrics=metrics,
            baselines=simpler,
            kinds=result.by_kind,
            pictures={
                "loss_curves": new / "loss.png",
                "loss_by_position": new / "loss_by_position.png",
                "reliability": new / "calibration.png",
                "loss_by_kind": new / "loss_by_kind.png",
            },
            params=made_with,
            defaults={key: FIELDS[key].default for key in made_with},
        )
        (new / "report.html").write_text(page, encoding="utf-8")
        written = sorted(REPORTS / file.name for file in new.iterdir())
    print(
        f"evaluate: loss {result.loss:.4f} nats per character, {result.bits_per_char:.4f} bits per character, "
        f"accuracy {result.accuracy:.1%}"
    )
    for name, loss in simpler.items():
        print(f"evaluate: {loss:.4f} nats per character by a {name}")
    print(f"evaluate: all of it, with pictures: {REPORTS / 'report.html'}")
    return metrics, written


def precision_of(card: ModelCard, device: torch.device) -> torch.dtype:
    """That of training, where this device is fast at it too; else float32."""
    trained_in_bf16 = card.made_with["precision"] == "bfloat16"
    return choose_precision("auto" if trained_in_bf16 else "fp32", device)


def write_csv(path: Path, rows: Sequence[Any]) -> None:
    """Named tuples, a line each, below the names of their fields."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(rows[0]._fields)
        writer.writerows(rows)


def surprisal_page(
    model: MiniGPT, tokenizer: CharTokenizer, test: Ids, context: int | None, card: ModelCard
) -> str:
    """A stretch from the middle of the test text, which is seldom a heading or a list of contents."""
    first = max(1, (len(test) - SHOWN) // 2)
    found = surprisals(model, test, context, first, SHOWN)
    return pages.surprisal_page(
        tokenizer.decode(test[first : first + SHOWN]),
        found.bits.tolist(),
        [
            list(zip(tokenizer.decode(ids), chances.tolist(), strict=True))
            for ids, chances in zip(found.candidates, found.probabilities, strict=True)
        ],
        f"{model.num_parameters:,} parameters, on characters {first:,} to {first + len(found.bits) - 1:,} "
        f"of the test text of {card.data.dataset}",
    )


def params_of(card: ModelCard, params: Params) -> dict[str, Any]:
    """What made the model and its evaluation, by the names in params.yaml.

    Those of download and encode have done their work when this stage runs; where a change of them changes
    nothing that it reads, it need not run again.
    """
    upstream = params.download.model_dump() | params.encode.model_dump()
    return upstream | card.params | params.evaluate.model_dump()


if __name__ == "__main__":
    run(main)

"""evaluate: models/minilm and data/encoded -> in reports/ metrics.json, evaluation.json and three tables."""

import json
from typing import Any

from minilm import checkpoint
from minilm.data.batches import open_tokens
from minilm.data.tokenizer import CharTokenizer, Ids
from minilm.device import choose_device, choose_precision
from minilm.evaluation.heads import head_scores
from minilm.evaluation.ngram import ORDER, ngram_losses
from minilm.evaluation.scoring import evaluate, surprisals
from minilm.files import ENCODED, MODEL, REPORTS, all_or_nothing, write_table
from minilm.model.gpt import MiniGPT
from minilm.params import load_params
from stages import run

SHOWN = 1500  # characters of reports/surprisal.html


def main() -> None:
    """Score every character of the test split, and find what n-gram models reach on it."""
    params = load_params("params.yaml").evaluate
    info = checkpoint.read_info(MODEL)
    print("evaluate:", info.data)
    device = choose_device(params.device)
    model, tokenizer = checkpoint.load(MODEL, device)
    test = open_tokens(ENCODED / "test.npy")
    context = None if params.eval_context == "auto" else params.eval_context
    # The precision of training, where this device is fast at it too.
    precision = choose_precision("auto" if info.environment["precision"] == "bfloat16" else "fp32", device)

    result = evaluate(model, tokenizer, test, context, precision=precision)
    unigram, *_, ngram = ngram_losses(open_tokens(ENCODED / "train.npy"), test, tokenizer.vocab_size)
    metrics = {
        name if name == "unknown_char_rate" else f"test_{name}": value
        for name, value in result.metrics().items()
    } | {"unigram_loss": unigram, "ngram_loss": ngram}
    evaluation = {
        "model_sha256": info.model_sha256,
        "eval_context": params.eval_context,
        "num_parameters": model.num_parameters,
        "ngram_order": ORDER,
        "surprisal": surprisal(model, tokenizer, test, context),
        "heads": [[scores._asdict() for scores in layer] for layer in head_scores(model, test)],
    }
    with all_or_nothing(REPORTS) as new:
        (new / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        (new / "evaluation.json").write_text(json.dumps(evaluation, ensure_ascii=False), encoding="utf-8")
        write_table(new / "loss_by_position.csv", result.by_position)
        write_table(new / "loss_by_kind.csv", result.by_kind)
        write_table(new / "calibration.csv", result.reliability)
    print(
        f"evaluate: loss {result.loss:.4f} nats per character, {result.bits_per_char:.4f} bits per "
        f"character, accuracy {result.accuracy:.1%}"
    )
    print(f"evaluate: {unigram:.4f} nats per character by a unigram model")
    print(f"evaluate: {ngram:.4f} nats per character by a {ORDER}-gram model with back-off")


def surprisal(model: MiniGPT, tokenizer: CharTokenizer, test: Ids, context: int | None) -> dict[str, Any]:
    """A passage from the middle of the test split, which is seldom a heading or a table of contents."""
    first = max(1, (len(test) - SHOWN) // 2)
    found = surprisals(model, test, context, first, SHOWN)
    return {
        "first": first,
        "text": tokenizer.decode(test[first : first + SHOWN]),
        "bits": found.bits.astype(float).round(2).tolist(),
        "candidates": [
            list(zip(tokenizer.decode(ids), probabilities, strict=True))
            for ids, probabilities in zip(
                found.candidates, found.probabilities.astype(float).round(4).tolist(), strict=True
            )
        ],
    }


if __name__ == "__main__":
    run(main)

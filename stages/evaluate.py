"""evaluate: models/minilm and the test split -> reports/metrics.json."""

import json
from pathlib import Path

from minilm import checkpoint, tracking
from minilm.batches import open_tokens
from minilm.device import choose_device
from minilm.evaluation import evaluate
from minilm.files import all_or_nothing
from minilm.params import load_params
from stages import project_root, run

MODEL, TEST, REPORTS = Path("models/minilm"), Path("data/encoded/test.npy"), Path("reports")


def main() -> None:
    """Score every character of the test split."""
    params = load_params("params.yaml").evaluate
    print("evaluate:", checkpoint.read_card(MODEL).data)

    model, tokenizer = checkpoint.load(MODEL, choose_device(params.device))
    context = None if params.eval_context == "auto" else params.eval_context
    result = evaluate(model, tokenizer, open_tokens(TEST), context)
    metrics = {
        name if name == "unknown_char_rate" else f"test_{name}": value
        for name, value in result._asdict().items()
    }
    with all_or_nothing(REPORTS) as new:
        (new / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(
        f"evaluate: loss {result.loss:.4f} nats a character, {result.bits_per_char:.4f} bits a character, "
        f"accuracy {result.accuracy:.1%}"
    )

    with tracking.run_of(project_root(), MODEL) as notebook:
        notebook.log_params({"eval_context": params.eval_context})
        notebook.log_metrics(metrics)
        notebook.log_files(REPORTS / "metrics.json")


if __name__ == "__main__":
    run(main)

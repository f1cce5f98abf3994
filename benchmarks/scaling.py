"""How time, memory and loss grow with layers, width, context and data: `python -m benchmarks.scaling`.

Trains the recipe `modern` on data/encoded again and again with one size changed, each time in a process of
its own, and writes docs/scaling.csv and the pictures of docs/scaling.md.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import numpy as np
from matplotlib import pyplot as plt
from tqdm import tqdm

from benchmarks.measure import peak_memory
from minilm import CharTokenizer, MiniGPT, ModelConfig
from minilm.data.batches import open_tokens
from minilm.params import load_params, load_recipe
from minilm.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SIZES = {
    "num_layers": (1, 2, 4, 8),
    "embed_dim": (32, 64, 128, 256, 512),
    "block_size": (32, 64, 128, 256, 512),
    "characters": (10_000, 30_000, 100_000, 300_000, 900_000),
}
NAMES = {
    "num_layers": "layers",
    "embed_dim": "width (embed_dim)",
    "block_size": "context (block_size), characters",
    "characters": "characters of training text",
}
BLUE, ORANGE = "#1f5fa8", "#d1751c"
# Characters of a step stay the same when the context changes, and a small text is read many times.
CHARACTERS_PER_STEP = 4096
COLUMNS = (
    "changed", "value", "parameters", "milliseconds_per_step", "peak_mb", "train_loss", "val_loss", "mfu",
)  # fmt: skip


def main() -> None:
    """Run all trainings, or one of them for itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "encoded", help="folder of token files")
    parser.add_argument("--one", nargs=2, metavar=("KEY", "VALUE"), help="a single training, printed as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.data, arguments.one[0], int(arguments.one[1]))))
        return
    rows = []
    for key, value in tqdm([(key, value) for key, values in SIZES.items() for value in values]):
        command = [sys.executable, "-m", "benchmarks.scaling", "--data", str(arguments.data.absolute())]
        command += ["--one", key, str(value)]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    with (DOCS / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(rows)


def one(data: Path, key: str, value: int) -> dict[str, float | str]:
    """One training with one size changed."""
    recipe = load_recipe(ROOT / "recipes" / "modern.yaml")
    steps = 600 if key == "characters" else 200
    recipe |= {"steps": str(steps), "eval_interval": str(steps // 2), "eval_batches": "30"}
    if key != "characters":
        recipe[key] = str(value)
    recipe["batch_size"] = str(CHARACTERS_PER_STEP // int(recipe["block_size"]))
    params = load_params(ROOT / "params.yaml", recipe).train
    vocabulary = CharTokenizer.load(data / "tokenizer.json").vocab_size
    model = MiniGPT(ModelConfig.from_params(vocabulary, params))
    tokens = open_tokens(data / "train.npy")
    last = train(
        model,
        tokens[:value] if key == "characters" else tokens,
        open_tokens(data / "validation.npy"),
        params,
    )[-1]
    return {
        "changed": key,
        "value": value,
        "parameters": model.num_parameters,
        "milliseconds_per_step": round(1000 * CHARACTERS_PER_STEP / last.tokens_per_second, 1),
        "peak_mb": round(peak_memory()),
        "train_loss": round(last.train_loss, 3),
        "val_loss": round(last.val_loss, 3),
        "mfu": round(last.mfu, 3),
    }


def draw(rows: list[dict[str, float | str]]) -> None:
    """Three rows of panels, time, memory and loss, a column for each size."""
    plt.rcParams.update({"font.size": 13})
    figure, panels = plt.subplots(3, len(SIZES), figsize=(16, 10), sharex="col", layout="constrained")
    for column, key in enumerate(SIZES):
        chosen = [row for row in rows if row["changed"] == key]
        values = np.array([row["value"] for row in chosen], dtype=float)
        time, memory, loss = panels[:, column]
        for panel, measure in ((time, "milliseconds_per_step"), (memory, "peak_mb"), (loss, "val_loss")):
            panel.plot(values, [float(row[measure]) for row in chosen], "o-", color=BLUE, label="validation")
            panel.grid(alpha=0.3)
        loss.plot(values, [float(row["train_loss"]) for row in chosen], "o--", color=ORANGE, label="training")
        time.set_ylim(0, 300)
        memory.set_ylim(0, 800)
        loss.set_xscale("log")
        loss.set_xticks(values, [f"{v:.0f}" if v < 1000 else f"{v / 1000:.0f}k" for v in values])
        loss.minorticks_off()
        loss.set_xlabel(NAMES[key])
    for panel, label in zip(
        panels[:, 0], ("time of a step, ms", "peak memory, MB", "loss, nats per character"), strict=True
    ):
        panel.set_ylabel(label)
    panels[2, 0].legend()
    figure.savefig(DOCS / "scaling.png", dpi=80)


if __name__ == "__main__":
    main()

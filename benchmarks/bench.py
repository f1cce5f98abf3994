"""How fast MiniLM trains, beside other implementations on the same machine: `make bench`.

Every figure is the median of several runs, each in a process of its own, the candidates taking turns, so
that a machine whose speed changes meanwhile changes it for all. Nothing else should run.
"""

import argparse
import csv
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minilm import CharTokenizer, MiniGPT, ModelConfig, checkpoint
from minilm.data.provenance import Source
from minilm.device import choose_precision
from minilm.params import load_params, load_recipe

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.md"
RECIPE = ROOT / "recipes" / "shakespeare-cpu.yaml"
LONG_RECIPE = ROOT / "recipes" / "shakespeare-small.yaml"
CPUINFO = Path("/proc/cpuinfo")
PLAIN, NANOGPT = "plain PyTorch, eager, fp32", "nanoGPT, eager, fp32"
STEPS = 150  # of a run that measures speed
GOAL = 1.88  # nats per character on Tiny Shakespeare's validation split
BUDGET = 120  # seconds
NANOGPT_RECIPE = (  # as its README gives it
    "config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20",
    "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128",
    "--max_iters={steps}", "--lr_decay_iters={steps}", "--dropout=0.0",
)  # fmt: skip


def main() -> None:
    """Measure, print and write results.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nanogpt", type=Path, metavar="PATH", help="nanoGPT's checkout, to compare with")
    parser.add_argument("--shakespeare", type=Path, metavar="FILE", help="Tiny Shakespeare's input.txt")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each candidate")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    sections = [conditions(), speed(arguments), generation(arguments), memory(arguments)]
    if arguments.shakespeare:
        sections.append(shakespeare(arguments))
    text = "# Benchmark results\n\nWritten by `make bench`.\n\n" + "\n\n".join(sections) + "\n"
    arguments.output.write_text(text)
    print(text)


def conditions() -> str:
    """What the figures hold for."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []  # Linux alone has it
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    cpu = next(iter(names), platform.machine())
    units = [name for name, there in torch.cpu.get_capabilities().items() if there is True and "bf16" in name]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return (
        f"{datetime.date.today()}, {os.cpu_count()} cores of {cpu} ({', '.join(units) or 'no bf16 units'}), "
        f"GPU {gpu}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.system()}."
    )


def speed(arguments: argparse.Namespace) -> str:
    """Characters per second of the default model in the default way, and of others."""
    candidates = {
        PLAIN: ["plain"],
        "MiniLM, defaults": ["minilm"],
        "MiniLM, compile true": ["minilm", "--set", "compile=true"],
        "MiniLM, precision fp32": ["minilm", "--set", "precision=fp32"],
    }
    if choose_precision("auto", torch.device("cpu")) == torch.float32:
        del candidates["MiniLM, precision fp32"]  # the same as the defaults
    if arguments.nanogpt:
        candidates[NANOGPT] = ["nanogpt", "--nanogpt", str(arguments.nanogpt)]
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in tqdm(range(arguments.rounds), desc="speed, rounds"):
        for name, words in candidates.items():
            found[name].append(measure(*words, "--steps", str(STEPS))["characters_per_second"])
    yardsticks = [name for name in (PLAIN, NANOGPT) if name in found]
    lines = [
        "## Characters per second",
        "",
        "The default architecture (2 layers, 128 wide, 4 heads, block 128, batch 32, vocabulary 65); "
        f"{arguments.rounds} alternating runs of {STEPS} steps, of which the first fifth warms up. Ratios "
        "are the median of those within a round, with the least and the greatest.",
        "",
        "| | median | min | max |" + "".join(f" times {name} |" for name in yardsticks),
        "| --- | --- | --- | --- |" + " --- |" * len(yardsticks),
    ]
    for name, rates in found.items():
        row = f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} |"
        for yardstick in yardsticks:
            ratios = [a / b for a, b in zip(rates, found[yardstick], strict=True)]
            row += f" {spread(ratios)} |"
        lines.append(row)
    return "\n".join(lines)


def generation(arguments: argparse.Namespace) -> str:
    """Characters per second that the default model writes, and the time to the command line's first one."""
    words = ["--nanogpt", str(arguments.nanogpt)] if arguments.nanogpt else []
    rounds = [
        measure("generation", *words) | first_character()
        for _ in tqdm(range(arguments.rounds), desc="generation, rounds")
    ]
    names = {
        "nanogpt": "nanoGPT's `generate`",
        "one": "`generate`",
        "stream": "`stream`",
        "many": "`generate_samples`, 64 texts, in total",
    }
    lines = [
        "## Generation",
        "",
        "Characters per second of untrained default models (vocabulary 65) from a prompt of one character, "
        f"1,000 per text, temperature 0.8; {arguments.rounds} processes, in each one after the other. Ratios "
        "are the median of those within a process, with the least and the greatest.",
        "",
        "| | median | min | max | times nanoGPT's | times `generate` |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, name in names.items():
        if key in rounds[0]:
            rates = [found[key] for found in rounds]
            row = f"| {name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} |"
            for yardstick in ("nanogpt", "one"):
                ratios = [found[key] / found[yardstick] for found in rounds if yardstick in found]
                row += f" {spread(ratios)} |" if ratios else " |"
            lines.append(row)
    first, torch_alone = ([found[key] for found in rounds] for key in ("first", "torch"))
    return "\n".join(
        [
            *lines,
            "",
            f"`main.py --generate` has its first character after {statistics.median(first):.2f} s; "
            f"a process that only imports torch ends after {statistics.median(torch_alone):.2f} s.",
        ]
    )


def first_character() -> dict[str, float]:
    """Seconds until the command line's first character, and until a process that only imports torch ends."""
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(ROOT / "main.py", folder)  # it looks for the model beside itself
        for name in ("minilm", "params.yaml", "recipes"):
            (folder / name).symlink_to(ROOT / name)
        tokenizer = CharTokenizer.from_text(
            (ROOT / "minilm/data/sample_text/train.txt").read_text(encoding="utf-8")
        )
        source = Source("none", "none", None, {"train": 0}, "")
        model = MiniGPT(ModelConfig(tokenizer.vocab_size))
        checkpoint.save(folder / "models" / "minilm", model, tokenizer, {}, source, {})
        for name, words in (("torch", ["-c", "import torch"]), ("first", ["main.py", "--generate"])):
            start = time.perf_counter()
            process = subprocess.Popen([sys.executable, *words], cwd=folder, stdout=subprocess.PIPE)
            assert process.stdout
            process.stdout.read(5)  # the prompt, which is four characters, and one more; or the end
            seconds[name] = time.perf_counter() - start
            process.communicate()
    return seconds


def spread(ratios: list[float]) -> str:
    """The median, with the least and the greatest."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def memory(arguments: argparse.Namespace) -> str:
    """Peak memory of training on a small and on a large corpus."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for millions in (1, 500):
            path = Path(folder) / f"{millions}.npy"
            rng = np.random.default_rng(1)
            tokens = np.lib.format.open_memmap(path, "w+", np.uint8, (millions * 1_000_000,))
            for first in range(0, len(tokens), 1_000_000):
                tokens[first : first + 1_000_000] = rng.integers(0, 65, 1_000_000)
            del tokens
            peaks = [measure("minilm", "--tokens", str(path))["peak_mb"] for _ in range(arguments.rounds)]
            rows.append(f"| {millions} million | {statistics.median(peaks):,.0f} | {max(peaks):,.0f} |")
    return "\n".join(
        [
            "## Peak memory of training",
            "",
            "| tokens on disk | median MB | max MB |",
            "| --- | --- | --- |",
            *rows,
        ]
    )


def shakespeare(arguments: argparse.Namespace) -> str:
    """The time to a given loss, and the loss after a given time, beside nanoGPT's recipe for CPUs."""
    steps = int(load_recipe(RECIPE)["steps"])
    ours, theirs = f"MiniLM, {steps:,} steps", "nanoGPT, 2,000 steps"
    rows: dict[str, list[tuple[float, float]]] = {}  # seconds and losses
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder) / "minilm", arguments.shakespeare)
        other = copy_nanogpt(Path(folder) / "nanogpt", arguments) if arguments.nanogpt else None
        for _ in tqdm(range(arguments.rounds), desc="Tiny Shakespeare, rounds"):
            rows.setdefault(ours, []).append(run_recipe(project, RECIPE, steps))
            if other:
                rows.setdefault(theirs, []).append(run_nanogpt(other, 2000))
        long = budget_steps(project)
        rows[f"MiniLM's `shakespeare-small`, {long:,} steps, to fill {BUDGET} s"] = [
            run_recipe(project, LONG_RECIPE, long)
        ]
        if other:
            long = int(2000 * BUDGET / statistics.median(seconds for seconds, _ in rows[theirs]))
            rows[f"nanoGPT, {long:,} steps, to fill {BUDGET} s"] = [run_nanogpt(other, long)]
    reached = sum(loss <= GOAL for _, loss in rows[ours])
    lines = [
        "## Tiny Shakespeare on a CPU",
        "",
        "Wall-clock of the whole train stage (`recipes/shakespeare-cpu.yaml`), imports, reports and MLflow "
        "included, and of nanoGPT's train.py with its documented recipe for CPUs, and the loss on the "
        "validation split: ours over all of it at the end, nanoGPT's the best that it reports, from 20 "
        f"random batches. {len(rows[ours])} alternating runs; the long ones once.",
        "",
        "| | seconds, median | min | max | validation loss, nats per character | min | max |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, results in rows.items():
        seconds, losses = zip(*results, strict=True)
        lines.append(
            f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} | {max(seconds):.1f} | "
            f"{statistics.median(losses):.4f} | {min(losses):.4f} | {max(losses):.4f} |"
        )
    lines += ["", f"MiniLM is at or below {GOAL} nats in {reached} of {len(rows[ours])} runs."]
    if theirs in rows:
        ratios = [b[0] / a[0] for a, b in zip(rows[ours], rows[theirs], strict=True)]
        lines[-1] += f" It takes 1/{statistics.median(ratios):.1f} of nanoGPT's time (median of the rounds)."
    return "\n".join(lines)


def measure(*words: str) -> dict[str, float]:
    """The result of benchmarks.measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.measure", *words]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def copy_project(folder: Path, text: Path) -> Path:
    """This project as it is, with the recipe, its data encoded: nanoGPT's split, 90% and 10%."""
    for name in ("minilm", "stages", "params.yaml", "dvc.yaml"):
        source = ROOT / name
        folder.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    content, splits = text.read_text(encoding="utf-8"), folder / "text"
    splits.mkdir()
    cut = int(len(content) * 0.9)
    (splits / "train.txt").write_text(content[:cut], encoding="utf-8")
    for split in ("validation", "test"):
        (splits / f"{split}.txt").write_text(content[cut:], encoding="utf-8")
    write_params(folder, RECIPE, {"dataset": str(splits)})
    for stage in ("download", "encode"):
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, check=True, capture_output=True)
    return folder


def write_params(folder: Path, recipe: Path, values: dict[str, str]) -> None:
    """The recipe, with these values, as the project's params.yaml."""
    overrides = load_recipe(recipe) | values
    params = load_params(ROOT / "params.yaml", overrides)
    known = {key: value for part in params for key, value in part.model_dump().items()}
    lines = [f"{key}: {json.dumps(value)}" for key, value in known.items()]
    (folder / "params.yaml").write_text("\n".join(lines) + "\n")


def run_recipe(project: Path, recipe: Path, steps: int) -> tuple[float, float]:
    """Seconds of the train stage, and the whole validation split's loss after it."""
    text = str(project / "text")
    write_params(project, recipe, {"dataset": text, "steps": str(steps), "eval_interval": str(steps)})
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "stages.train"], cwd=project, check=True, capture_output=True)
    seconds = time.perf_counter() - start
    with (project / "reports/loss.csv").open() as file:
        return seconds, float(list(csv.DictReader(file))[-1]["val_loss"])


def budget_steps(project: Path) -> int:
    """Steps of the long recipe that fill the budget, by the difference between two short runs."""
    few, more = 30, 130
    short, long = (run_recipe(project, LONG_RECIPE, steps)[0] for steps in (few, more))
    return int(few + (BUDGET - short) / ((long - short) / (more - few)))


def copy_nanogpt(folder: Path, arguments: argparse.Namespace) -> Path:
    """A copy of nanoGPT's checkout with the text prepared by its own script."""
    shutil.copytree(arguments.nanogpt, folder, ignore=shutil.ignore_patterns(".git", "out*"))
    data = folder / "data" / "shakespeare_char"
    shutil.copy(arguments.shakespeare, data / "input.txt")
    subprocess.run([sys.executable, "prepare.py"], cwd=data, check=True, capture_output=True)
    return folder


def run_nanogpt(folder: Path, steps: int) -> tuple[float, float]:
    """Seconds of nanoGPT's train.py, and the lowest validation loss that it reports."""
    command = [sys.executable, "train.py", *(word.format(steps=steps) for word in NANOGPT_RECIPE)]
    start = time.perf_counter()
    printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - start
    losses = [float(line.split("val loss ")[1]) for line in printed.splitlines() if "val loss" in line]
    return seconds, min(losses)


if __name__ == "__main__":
    main()

"""Whether a change of parameters makes a recipe learn more: `python -m benchmarks.ladder TEXT [CHANGE...]`.

A candidate is the recipe with some parameters changed, such as "token_shift=0.5 steps=120". For each seed the
recipe and every candidate train once, one after the other, on the first nine tenths of the text; the loss is
that of the whole last tenth (windows of block_size at even distances that cover it, each character with what
precedes it in its window). The differences from the recipe are paired by seed, and their mean has a 95 %
interval by Student's t. Seeds that were used to choose a candidate say nothing of it.

All train on equally many characters, unless a candidate changes that. With --seconds they train for equally
long: the steps are chosen by each one's time per step, measured first, the candidates taking turns; at most
half of them are warmup.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.bench import conditions
from minilm import CharTokenizer, MiniGPT, ModelConfig
from minilm.data.tokenizer import Ids
from minilm.errors import UserError
from minilm.params import TrainParams, load_params, load_recipe
from minilm.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "the recipe"  # the candidate that changes nothing
STEPS_TIMED, ROUNDS_TIMED = 30, 5
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom: of 2, 3, ... seeds.
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Data(NamedTuple):
    """A text to train on and to compare the losses on."""

    train_tokens: Ids
    val_tokens: Ids
    vocab_size: int


class Trial(NamedTuple):
    """One training."""

    candidate: str
    seed: int
    steps: int
    characters: int  # trained on
    seconds: float  # of training, without the report
    val_loss: float  # nats per character


def main() -> None:
    """Run the trials, write them down, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("changes", nargs="*", metavar="CHANGE")
    parser.add_argument("--recipe", default="shakespeare-cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 15])
    parser.add_argument("--seconds", type=float, help="train each for so long")
    parser.add_argument("--output", type=Path, required=True, help="the CSV file of all trials")
    arguments = parser.parse_intermixed_args()
    if not 2 <= len(set(arguments.seeds)) == len(arguments.seeds) <= len(T_QUANTILES) + 1:
        parser.error(f"--seeds: an interval needs 2 to {len(T_QUANTILES) + 1} different ones")
    if arguments.seconds is not None and not 0 < arguments.seconds < float("inf"):
        parser.error("--seconds: must be above 0")
    try:
        run_trials(arguments)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


def run_trials(arguments: argparse.Namespace) -> None:
    """What the command line asks for."""
    data = split(arguments.text.read_text(encoding="utf-8"))
    recipe = load_recipe(ROOT / "recipes" / f"{arguments.recipe}.yaml") | {"eval_batches": "0"}
    candidates = {
        change: load_params(
            ROOT / "params.yaml", recipe | dict(pair.partition("=")[::2] for pair in change.split())
        ).train
        for change in ["", *arguments.changes]
    }
    candidates = {change or RECIPE: params for change, params in candidates.items()}
    if arguments.seconds:
        candidates = of_equal_time(candidates, data, arguments.seconds)
    trials = []
    with arguments.output.open("w", newline="", buffering=1) as file:  # line by line: a training may fail
        writer = csv.writer(file)
        writer.writerow(Trial._fields)
        for seed in tqdm(arguments.seeds, desc="seeds"):
            for name, params in candidates.items():
                trials.append(trial(name, params, seed, data))
                writer.writerow(trials[-1])
    print(f"{arguments.text.name}, recipe {arguments.recipe}; {conditions()}\n\n{table(trials)}")


def split(text: str) -> Data:
    """The first nine tenths of a text to train on, and the rest."""
    cut = len(text) * 9 // 10
    tokenizer = CharTokenizer.from_text(text[:cut])
    return Data(tokenizer.encode(text[:cut]), tokenizer.encode(text[cut:]), tokenizer.vocab_size)


def trial(name: str, params: TrainParams, seed: int, data: Data) -> Trial:
    """Train once; the only report is at the end."""
    params = params.model_copy(update={"seed": seed, "eval_interval": params.steps})
    model = MiniGPT(ModelConfig.from_params(data.vocab_size, params), seed)
    (report,) = train(model, data.train_tokens, data.val_tokens, params)
    characters = params.steps * params.batch_size * params.block_size
    return Trial(name, seed, params.steps, characters, characters / report.tokens_per_second, report.val_loss)


def of_equal_time(
    candidates: Mapping[str, TrainParams], data: Data, seconds: float
) -> dict[str, TrainParams]:
    """The candidates with as many steps as take so long here, by the median time of a step."""
    short = {"steps": STEPS_TIMED, "warmup_steps": 0, "eval_batches": 1}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS_TIMED):
        for name, params in candidates.items():
            times[name].append(trial(name, params.model_copy(update=short), 0, data).seconds / STEPS_TIMED)
    steps = {name: max(1, round(seconds / statistics.median(found))) for name, found in times.items()}
    return {
        name: params.model_copy(
            update={"steps": steps[name], "warmup_steps": min(params.warmup_steps, steps[name] // 2)}
        )
        for name, params in candidates.items()
    }


def table(trials: Sequence[Trial]) -> str:
    """Means over the seeds, and the mean difference from the recipe with its 95 % interval, as Markdown."""
    lines = [
        "| candidate | steps | s | loss, mean (min to max) | difference | 95 % interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    losses: dict[str, dict[int, float]] = {}
    for found in trials:
        losses.setdefault(found.candidate, {})[found.seed] = found.val_loss
    for name, by_seed in losses.items():
        own = [found for found in trials if found.candidate == name]
        row = (
            f"| {name} | {own[0].steps:,} | {statistics.median(found.seconds for found in own):.1f} | "
            f"{statistics.mean(by_seed.values()):.4f} ({min(by_seed.values()):.4f} to "
            f"{max(by_seed.values()):.4f}) |"
        )
        if name == RECIPE:
            lines.append(f"{row} | |")
            continue
        mean, low, high = paired_interval([loss - losses[RECIPE][seed] for seed, loss in by_seed.items()])
        lines.append(f"{row} {mean:+.4f} | {low:+.4f} to {high:+.4f} |")
    return "\n".join(lines)


def paired_interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean of two to ten differences, and its 95 % interval."""
    mean, count = statistics.mean(differences), len(differences)
    reach = T_QUANTILES[count - 2] * statistics.stdev(differences) / count**0.5
    return mean, mean - reach, mean + reach


if __name__ == "__main__":
    main()

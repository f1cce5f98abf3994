"""train: data/encoded -> models/minilm, reports/train.json and reports/loss.csv."""

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from minilm.distributed import Workers, join_workers, whole_model
from minilm.resume import Snapshots, fingerprint, loaded_code
from tqdm import tqdm

from minilm import checkpoint, tracking
from minilm.data.batches import open_tokens
from minilm.data.provenance import Source
from minilm.data.tokenizer import CharTokenizer
from minilm.device import choose_precision
from minilm.files import all_or_nothing
from minilm.model.config import ModelConfig
from minilm.model.gpt import MiniGPT
from minilm.params import Params, TrainParams, load_params
from minilm.training import Report, best_report, train
from stages import is_forced, project_root, run

SOURCE, ENCODED, MODEL, REPORTS = (
    Path(name) for name in ("data/raw/source.json", "data/encoded", "models/minilm", "reports")
)


def main() -> None:
    """Train a model of the shape in params.yaml, write its folder, note it all in MLflow."""
    params = load_params("params.yaml")
    with join_workers(params.train.device) as workers:
        train_together(params, workers)


def train_together(all_params: Params, workers: Workers) -> None:
    """What each process does; of several, the first alone writes files, notes and messages."""
    params, source = all_params.train, Source.load(SOURCE)
    tokenizer = CharTokenizer.load(ENCODED / "tokenizer.json")
    shape = {
        field.name: getattr(params, field.name) for field in fields(ModelConfig) if field.name != "vocab_size"
    }
    model = MiniGPT(ModelConfig(tokenizer.vocab_size, **shape), seed=params.seed)
    if params.sharding == "none":
        model.to(workers.device)  # else fsdp moves it block by block, since the whole may not fit
    made_with = {
        "torch": torch.__version__,
        "device_type": workers.device.type,
        "precision": str(choose_precision(params.precision, workers.device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processes": workers.count,
    }
    snapshots = find_snapshots(params, made_with)
    first = workers.rank == 0
    row = (
        tracking.new_run(project_root(), source, snapshots.folder.name, is_forced())
        if first
        else nullcontext()
    )
    with alone(snapshots, workers), row as notebook:
        if notebook:
            print("train:", source)
            print(
                f"train: {model.num_parameters:,} parameters in {made_with['precision']} on "
                f"{made_with['device_type']}, {workers.count} x {made_with['threads']} threads"
            )
            if snapshots.newest_step:
                print(f"train: going on from the state after step {snapshots.newest_step} of {params.steps}")
            for part in (all_params.download, all_params.encode, params):
                notebook.log_params(part.model_dump())
            notebook.log_params(tracking.made_with_params(made_with))
            notebook.log_params({"num_parameters": model.num_parameters})

        def report(now: Report) -> None:
            if notebook:
                notebook.log_metrics(
                    {name: value for name, value in now._asdict().items() if name != "step"}, now.step
                )
                tqdm.write(
                    f"step {now.step:>{len(str(params.steps))}}/{params.steps}  "
                    f"train loss {now.train_loss:.4f}  validation loss {now.val_loss:.4f}  "
                    f"{now.tokens_per_second:,.0f} characters/s, {now.flop_utilization:.0%} of the peak"
                )

        train_tokens, val_tokens = open_tokens(ENCODED / "train.npy"), open_tokens(ENCODED / "validation.npy")
        reports = train(model, train_tokens, val_tokens, params, report, snapshots, workers)
        model = whole_model(model, params.sharding)
        if notebook:
            checkpoint.save(MODEL, model, tokenizer, params.model_dump(), source, made_with)
            summary = write_reports(reports, model, params)
            notebook.log_model(MODEL)
            notebook.log_metrics({key: summary[key] for key in ("best_step", "best_val_loss")})
            notebook.log_files(REPORTS / "train.json", REPORTS / "loss.csv")
            notebook.log_standing_results(MODEL)
            snapshots.remove()


def find_snapshots(params: TrainParams, made_with: dict[str, Any]) -> Snapshots:
    """The saved states of exactly this training: same parameters, data, code and machine's ways."""
    inputs = [ENCODED / name for name in ("tokenizer.json", "train.npy", "validation.npy")]
    name = fingerprint(params.model_dump(), made_with, files=[*inputs, *loaded_code(Path.cwd())])
    return Snapshots(project_root() / ".checkpoints" / name, params.checkpoint_interval)


@contextmanager
def alone(snapshots: Snapshots, workers: Workers) -> Iterator[None]:
    """Keep out other trainings with the same states; first wait for the end of one that is under way.

    It may be left over from a `dvc` that was killed, or run in a queue.
    """
    lock = FileLock(project_root() / ".dvc" / "tmp" / f"training-{snapshots.folder.name}.lock")
    with ExitStack() as held:
        if workers.rank == 0:
            try:
                held.enter_context(lock.acquire(blocking=False))
            except Timeout:
                print("train: another process is at exactly this training; waiting for its end", flush=True)
                held.enter_context(lock)
            if is_forced():
                snapshots.remove()
        workers.any(False)  # the others wait for the first
        yield


def write_reports(reports: list[Report], model: MiniGPT, params: TrainParams) -> dict[str, float]:
    """The curves and the summary; rates stay out, since they differ between two equal runs."""
    columns = ("step", "train_loss", "val_loss", "learning_rate")
    best = best_report(reports)
    kept = best if params.keep == "best" else reports[-1]
    summary = {
        "train_loss": kept.train_loss,
        "val_loss": kept.val_loss,
        "step": kept.step,
        "best_val_loss": best.val_loss,
        "best_step": best.step,
        "num_parameters": model.num_parameters,
    }
    with all_or_nothing(REPORTS) as new:
        with (new / "loss.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([getattr(now, column) for column in columns] for now in reports)
        (new / "train.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


if __name__ == "__main__":
    run(main)

"""train: data/encoded -> models/minilm, reports/train.json and reports/loss.csv."""

import csv
import json
import os
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from minilm import checkpoint, tracking
from minilm.batches import open_tokens
from minilm.device import choose_device
from minilm.errors import InputError
from minilm.files import all_or_nothing
from minilm.model import MiniGPT, ModelConfig
from minilm.params import load_params
from minilm.source import Source
from minilm.tokenizer import CharTokenizer
from minilm.training import Report, train
from stages import project_root, run

SOURCE, ENCODED, MODEL, REPORTS = (
    Path(name) for name in ("data/raw/source.json", "data/encoded", "models/minilm", "reports")
)


def main() -> None:
    """Train a model of the shape in params.yaml, write its folder, note it all in MLflow."""
    all_params = load_params("params.yaml")
    params, source = all_params.train, Source.load(SOURCE)
    print("train:", source)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("launcher: training runs in one process; take --nproc-per-node 1")

    tokenizer = CharTokenizer.load(ENCODED / "tokenizer.json")
    shape = {
        field.name: getattr(params, field.name) for field in fields(ModelConfig) if field.name != "vocab_size"
    }
    device = choose_device(params.device)
    model = MiniGPT(ModelConfig(tokenizer.vocab_size, **shape), seed=params.seed).to(device)
    made_with = {"torch": torch.__version__, "device_type": device.type, "threads": torch.get_num_threads()}
    print(f"train: {model.num_parameters:,} parameters on {device.type}, {made_with['threads']} threads")

    with tracking.new_run(project_root(), tracking.data_tags(source)) as notebook:
        for part in (all_params.download, all_params.encode, params):
            notebook.log_params(part.model_dump())
        notebook.log_params({"num_parameters": model.num_parameters, **made_with})

        def report(now: Report) -> None:
            notebook.log_metrics(
                {name: value for name, value in now._asdict().items() if name != "step"}, now.step
            )
            tqdm.write(
                f"step {now.step:>{len(str(params.steps))}}/{params.steps}  train loss {now.train_loss:.4f}  "
                f"validation loss {now.val_loss:.4f}  {now.tokens_per_second:,.0f} characters/s"
            )

        train_tokens, val_tokens = open_tokens(ENCODED / "train.npy"), open_tokens(ENCODED / "validation.npy")
        reports = train(model, train_tokens, val_tokens, params, report)

        checkpoint.save(MODEL, model, tokenizer, params.model_dump(), source, made_with)
        write_reports(reports, model)
        notebook.log_files(REPORTS / "train.json", REPORTS / "loss.csv")
        notebook.log_model(MODEL)


def write_reports(reports: list[Report], model: MiniGPT) -> None:
    """The curves and the last losses; the rate stays out, since it differs between two equal runs."""
    columns = ("step", "train_loss", "val_loss", "learning_rate")
    last = reports[-1]
    with all_or_nothing(REPORTS) as new:
        with (new / "loss.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([getattr(now, column) for column in columns] for now in reports)
        summary = {
            "train_loss": last.train_loss,
            "val_loss": last.val_loss,
            "steps": last.step,
            "num_parameters": model.num_parameters,
        }
        (new / "train.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    run(main)

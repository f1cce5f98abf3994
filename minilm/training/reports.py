"""What training reports now and then, and the files that keep it."""

import json
from pathlib import Path
from typing import NamedTuple

from minilm.files import all_or_nothing, write_table


class Report(NamedTuple):
    """How training stands after `step` updates."""

    step: int
    train_loss: float  # nats per character, mean over the batches since the last report
    val_loss: float  # nats per character, mean over fixed windows of the validation split
    learning_rate: float
    grad_norm: float  # before clipping, mean over the steps since the last report
    tokens_per_second: float  # characters trained on, without the time for reports
    mfu: float  # model FLOPs utilization: share of the devices' matrix-product peak

    def __str__(self) -> str:
        return (
            f"train loss {self.train_loss:.4f}  validation loss {self.val_loss:.4f}  "
            f"{self.tokens_per_second:,.0f} characters/s, {self.mfu:.0%} MFU"
        )


CURVES = ("step", "train_loss", "val_loss", "learning_rate", "grad_norm")  # rates differ between equal runs


def best_report(reports: list[Report]) -> Report:
    """The one with the lowest validation loss, the first of equals."""
    return min(reports, key=lambda report: report.val_loss)


def write_reports(folder: Path, reports: list[Report], keep: str, num_parameters: int) -> None:
    """Write loss.csv, the curves, and train.json, the losses of the weights that were kept."""
    best = best_report(reports)
    kept = best if keep == "best" else reports[-1]
    summary = {
        "train_loss": kept.train_loss,
        "val_loss": kept.val_loss,
        "step": kept.step,
        "best_val_loss": best.val_loss,
        "best_step": best.step,
        "num_parameters": num_parameters,
    }
    with all_or_nothing(folder) as new:
        write_table(new / "loss.csv", reports, CURVES)
        (new / "train.json").write_text(json.dumps(summary, indent=2) + "\n")

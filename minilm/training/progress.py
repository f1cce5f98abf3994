"""A progress bar for the training loop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from minilm.training.loop import Training


@contextmanager
def progress_bar(training: "Training") -> Iterator[Callable[[], None]]:
    """A bar of the characters trained on, on a terminal only; yields what to call after each step."""
    per_step = training.characters_per_step
    with tqdm(
        total=training.params.steps * per_step,
        initial=training.step * per_step,
        unit=" characters",
        unit_scale=True,
        dynamic_ncols=True,
        disable=None if training.workers.rank == 0 else True,  # None: unless on a terminal
    ) as bar:

        def after_step() -> None:
            bar.update(per_step)
            if training.reports and training.reports[-1].step == training.step:
                latest = training.reports[-1]
                bar.set_postfix(loss=f"{latest.train_loss:.3f}", validation=f"{latest.val_loss:.3f}")

        yield after_step

"""The training loop: take a batch, measure the loss, step against its gradient, report now and then.

What is not training itself hangs on the loop: checkpoints and interruption (snapshots.py), copies of the
weights on the way (film.py), several processes (distributed.py).
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from minilm.data.batches import Pair, random_batch, spaced_batches
from minilm.data.tokenizer import Ids
from minilm.device import choose_precision, matmul_peak
from minilm.errors import InputError, TrainingDiverged
from minilm.model.cpu_kernels import keep_freed_memory, prepare_compiler
from minilm.model.gpt import MiniGPT
from minilm.params import TrainParams
from minilm.training.distributed import (
    Workers,
    full_state,
    gradients_summed,
    load_full_state,
    parallelize,
)
from minilm.training.film import add_frame
from minilm.training.memory import explain_lack_of_memory
from minilm.training.optim import clip_gradients, learning_rate_at, make_optimizers, set_learning_rate
from minilm.training.reports import Report
from minilm.training.snapshots import Snapshots, checkpointing

PEAKS_MEASURED = 3  # the highest counts: beside another busy process it is too low
MEASURED_APART = 1000  # steps whose losses are tensors of their own, before they become one


def next_char_loss(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    precision: torch.dtype,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the next character, in nats, mean or sum: (batch, time) twice -> (), in float32.

    Matrix products are computed in `precision`, the softmax over the vocabulary in float32 ("Mixed
    Precision Training", Micikevicius et al., 2018).
    """
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == torch.bfloat16):
        logits = forward(inputs)  # (batch, time, vocabulary)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


class Training:
    """A training under way: all that changes from step to step, and what changes it."""

    def __init__(
        self, model: MiniGPT, train_tokens: Ids, val_tokens: Ids, params: TrainParams, workers: Workers
    ):
        params.require_length(len(train_tokens))
        if len(val_tokens) < 2:
            raise InputError("the validation split needs at least 2 characters")
        if params.batch_size % (workers.count * params.grad_accumulation):
            raise InputError(
                f"batch_size: {params.batch_size} cannot be divided among {workers.count} processes with "
                f"{params.grad_accumulation} micro-batches each"
            )
        self.model, self.params, self.workers = model, params, workers
        self.train_tokens, self.val_tokens = train_tokens, val_tokens
        self.precision = choose_precision(params.precision, workers.device)
        self.peaks: list[float] = []  # matrix-product rates of all devices, measured at the first reports
        self.characters_per_step = params.batch_size * model.config.block_size
        self.parallel = parallelize(model, params.sharding, workers)
        self.forward: Callable[[Tensor], Tensor] = self.parallel
        if params.compile:
            prepare_compiler(workers.device)
            self.forward = torch.compile(self.parallel)
        self.optimizers = make_optimizers(model, params)
        self.step = 0
        self.measured: list[Tensor] = []  # loss and gradient norm of steps since the last report, (steps, 2)
        self.reports: list[Report] = []
        self.best: dict[str, Any] = {}  # the state of the report with the lowest validation loss
        self.film: dict[str, Tensor] = {}  # copies of the weights, see film.py
        self.updates = 0  # of this process
        self.start_clock()

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the batch of each step that remains, on its device."""
        params, block_size = self.params, self.model.config.block_size
        for step in range(self.step + 1, params.steps + 1):
            batch = random_batch(self.train_tokens, params.batch_size, block_size, params.seed, step)
            yield _on_device(batch, self.workers)

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """One step: forward, loss, backward, clip, update; inputs and targets are (batch, time).

        Raises:
            TrainingDiverged: on a CPU, before the weights are changed.
        """
        step, micro_batches = self.step + 1, self.params.grad_accumulation
        if self.updates == 1:
            self.start_clock()  # anew: the first update loads code and compiles
        self._seed_dropout(step)
        for optimizer in self.optimizers:
            optimizer.zero_grad()

        loss = torch.zeros((), device=inputs.device)
        pairs = zip(inputs.chunk(micro_batches), targets.chunk(micro_batches), strict=True)
        for number, (x, y) in enumerate(pairs, start=1):
            with gradients_summed(self.parallel, number == micro_batches):
                micro_loss = next_char_loss(self.forward, x, y, self.precision) / micro_batches
                micro_loss.backward()
            loss += micro_loss.detach()

        grad_norm = clip_gradients(self.model, self.params.grad_clip)
        measured = torch.stack([loss, grad_norm])[None]
        # Reading a number on a GPU waits for it; there only reports and checkpoints do.
        if inputs.device.type == "cpu":
            self._require_finite(measured, step, " before it")

        set_learning_rate(self.optimizers, learning_rate_at(step, self.params))
        for optimizer in self.optimizers:
            optimizer.step()
        self.step = step
        self.measured.append(measured)
        if len(self.measured) > MEASURED_APART:
            self.measured = [torch.cat(self.measured)]
        self.updates += 1
        self.timed_steps += 1

    def report(self) -> Report:
        """Measure the losses, and keep the weights if they are the best so far."""
        train_loss, grad_norm = (column.mean().item() for column in self._measured_since_report().unbind(1))
        rate = self.timed_steps * self.characters_per_step / (time.perf_counter() - self.timed_from)
        windows = spaced_batches(
            self.val_tokens, self.params.batch_size, self.model.config.block_size, self.params.eval_batches
        )
        batches = (_on_device(batch, self.workers) for batch in windows)
        val_loss = mean_loss(self.model, batches, self.precision, self.workers)
        if not math.isfinite(val_loss):
            raise self._diverged(f"after step {self.step} the validation loss is {val_loss}")
        if len(self.peaks) < PEAKS_MEASURED:
            self.peaks.append(matmul_peak(self.workers.device, self.precision) * self.workers.count)
        latest = Report(
            self.step,
            train_loss,
            val_loss,
            self.optimizers[0].param_groups[0]["lr"],
            grad_norm,
            rate,
            rate * self.model.flops_per_token / max(self.peaks),
        )
        lowest = min((past.val_loss for past in self.reports), default=math.inf)
        if self.params.keep == "best" and val_loss < lowest:
            self.best = copy.deepcopy(full_state(self.model))
        self.reports.append(latest)
        self.measured.clear()
        self.start_clock()
        return latest

    def start_clock(self) -> None:
        """Measure the rate from here on."""
        self.timed_from, self.timed_steps = time.perf_counter(), 0

    def state(self) -> dict[str, Any]:
        """All that changes, for a checkpoint; the processes call it together, the first one saves it."""
        measured = self._measured_since_report().cpu()  # first, since it refuses to save what has diverged
        return {
            **full_state(self.model, self.optimizers),
            "step": self.step,
            "measured": measured,
            "reports": [tuple(report) for report in self.reports],
            "best": self.best,
            "film": self.film,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` gave."""
        load_full_state(self.model, state, self.optimizers)
        self.step, self.best = state["step"], state["best"]
        self.measured = [state["measured"].to(self.workers.device)]
        self.reports = [Report(*values) for values in state["reports"]]
        self.film.update(state["film"])

    def _seed_dropout(self, step: int) -> None:
        """Seed it for each step, so that no generator's state has to be saved to resume."""
        if self.model.config.attention_dropout or self.model.config.mlp_dropout:
            seed = np.random.SeedSequence((self.params.seed, step, self.workers.rank))
            torch.manual_seed(int(seed.generate_state(1)[0]))

    def _measured_since_report(self) -> Tensor:
        """Loss and gradient norm of the steps since the last report, mean of all processes: (steps, 2)."""
        if not self.measured:
            return torch.empty(0, 2)
        measured = self.workers.mean(torch.cat(self.measured))
        self._require_finite(measured, self.step - len(measured) + 1, "")
        return measured

    def _require_finite(self, measured: Tensor, first_step: int, when: str) -> None:
        """Refuse losses and gradient norms, (steps, 2), that are not finite."""
        bad = ~measured.isfinite().all(1)
        if bad.any():
            index = int(bad.nonzero()[0])
            loss, norm = measured[index].tolist()
            raise self._diverged(
                f"step {first_step + index}: the loss is {loss:.4g} and the gradient norm {norm:.4g}; "
                f"training stopped{when}"
            )

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"{what}; try a lower learning_rate ({self.params.learning_rate:g} now), more warmup_steps "
            f"({self.params.warmup_steps} now) or precision fp32"
        )


@torch.no_grad()
def mean_loss(
    model: MiniGPT, batches: Iterable[tuple[Tensor, Tensor]], precision: torch.dtype, workers: Workers
) -> float:
    """Mean loss of all processes' batches, in nats per character, without dropout."""
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)  # nats, characters
    for inputs, targets in batches:
        nats = next_char_loss(model, inputs, targets, precision, reduction="sum")
        total += torch.tensor([nats, targets.numel()], dtype=torch.float64)
    model.train(was_training)
    nats, characters = workers.mean(total).tolist()
    return nats / characters


def train(
    model: MiniGPT,
    train_tokens: Ids,
    val_tokens: Ids,
    params: TrainParams,
    report: Callable[[Report], None] | None = None,
    snapshots: Snapshots | None = None,
    workers: Workers | None = None,
    film: dict[str, Tensor] | None = None,
) -> list[Report]:
    """Train the model in place, on its device; it is left in evaluation mode.

    Args:
        model: changed in place.
        train_tokens: (tokens,), at least block_size + 2.
        val_tokens: (tokens,), at least 2.
        params: the recipe; its fields for the model's shape are not used.
        report: called every eval_interval steps and after the last one. Where training resumes from a
            checkpoint, it is called with the reports before that first.
        snapshots: where to save checkpoints, at intervals and on SIGINT or SIGTERM, and to resume from.
            The caller removes them when all is done.
        workers: the processes that train together; None is this one alone.
        film: receives copies of the weights on the way, as film.py says; None keeps none.

    Returns:
        All reports. Same weights, tokens, params, thread and process count: same reports, but for the
        rates, and same weights after, whether training was interrupted or not.

    Raises:
        TrainingInterrupted: SIGINT or SIGTERM came, and the checkpoint is saved.
        TrainingDiverged: the loss or the gradient is not finite.
        InputError: a split is too short, the batch cannot be divided among the processes, memory does not
            suffice, or there is no compiler for `compile`.
    """
    keep_freed_memory()
    workers = workers or Workers(model.token_embedding.weight.device)
    gpus = [workers.device] if workers.device.type == "cuda" else []
    report = report or (lambda _: None)
    # Dropout draws from torch's global generators, whose state fork_rng restores.
    with explain_lack_of_memory(model, params, workers.count), torch.random.fork_rng(gpus):
        training = Training(model, train_tokens, val_tokens, params, workers)
        if film is not None:
            training.film = film
        with (
            checkpointing(training, snapshots) if snapshots else nullcontext(lambda: None) as save_if_due,
            tqdm(
                initial=training.step * training.characters_per_step,
                total=params.steps * training.characters_per_step,
                unit=" characters",
                unit_scale=True,
                dynamic_ncols=True,
                disable=workers.rank > 0 or None,  # None: unless on a terminal
            ) as progress,
        ):
            for past in training.reports:
                report(past)
            model.train()
            for inputs, targets in training.batches():
                training.update(inputs, targets)
                progress.update(training.characters_per_step)
                if training.step % params.eval_interval == 0 or training.step == params.steps:
                    latest = training.report()
                    report(latest)
                    progress.set_postfix(loss=f"{latest.train_loss:.3f}", validation=f"{latest.val_loss:.3f}")
                if film is not None:
                    add_frame(training)  # before a checkpoint, which holds the film
                save_if_due()
    if params.keep == "best":
        load_full_state(model, training.best)
    model.eval()
    return training.reports


def _on_device(batch: Pair, workers: Workers) -> tuple[Tensor, Tensor]:
    """This process's rows of a batch, on its device."""
    inputs, targets = (workers.share(torch.from_numpy(part)) for part in batch)
    if workers.device.type == "cuda":
        # From pinned memory it is copied without waiting for the GPU, which is still at the batch before.
        inputs, targets = inputs.pin_memory(), targets.pin_memory()
    return inputs.to(workers.device, non_blocking=True), targets.to(workers.device, non_blocking=True)

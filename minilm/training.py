"""The training loop: take a batch, measure the loss, step against its gradient, report now and then."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from minilm.batches import Batch, RandomBatches, spaced_batches
from minilm.device import choose_precision, keep_freed_memory, matmul_peak, quote_compiler_paths
from minilm.distributed import (
    Workers,
    load_whole_state,
    load_whole_weights,
    parallelise,
    whole_state,
    whole_weights,
)
from minilm.errors import InputError, StoppedError
from minilm.model import MiniGPT
from minilm.optim import clip_gradients, learning_rate_at, make_optimizers, set_learning_rate
from minilm.params import TrainParams
from minilm.resume import Snapshots, interruption
from minilm.tokenizer import Ids


class Report(NamedTuple):
    """How training stands after `step` updates."""

    step: int
    train_loss: float  # nats a character, mean over the batches since the last report
    val_loss: float  # nats a character, mean over fixed windows of the validation split
    learning_rate: float
    tokens_per_second: float  # characters trained on, the time for reports left out
    flop_utilization: float  # share of the devices' matrix-product peak that the model's products take


def train(
    model: MiniGPT,
    train_tokens: Ids,
    val_tokens: Ids,
    params: TrainParams,
    report: Callable[[Report], None] | None = None,
    snapshots: Snapshots | None = None,
    workers: Workers | None = None,
) -> list[Report]:
    """Train the model where it is, on its device; it is left in evaluation mode.

    Args:
        model: changed in place.
        train_tokens: (tokens,), at least block_size + 2.
        val_tokens: (tokens,), at least 2.
        params: the recipe; its fields for the model's shape are not looked at.
        report: called every eval_interval steps and after the last one. Where training goes on from a
            saved state, it is called with the reports before that first.
        snapshots: where to save states, every so often and when SIGINT or SIGTERM comes, and to go on
            from one. The caller removes them when all is done.
        workers: the processes that train together; None is this one alone.

    Returns:
        All reports. Same weights, tokens, params, thread and process count: same reports, but for the
        rates, and same weights after, whether training was interrupted or not.

    Raises:
        StoppedError: SIGINT or SIGTERM came, and the state is saved.
        InputError: a text is too short, the batch cannot be shared out, or the loss is no longer finite.
    """
    keep_freed_memory()
    workers = workers or Workers(model.token_embedding.weight.device)
    device = workers.device
    training = _Training(model, train_tokens, val_tokens, params, workers)
    model.train()
    if snapshots and (state := snapshots.load()):
        training.restore(state)
    if report:
        for past in training.reports:
            report(past)
    characters = params.batch_size * model.config.block_size  # in a step
    # Dropout draws from torch's global generators: they are given back as they were.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        interruption(enabled=snapshots is not None) as signals,
        tqdm(
            total=params.steps * characters,
            initial=training.step * characters,
            unit=" characters",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None if training.workers.rank == 0 else True,  # None: unless on a terminal
        ) as progress,
    ):
        for inputs, targets in training.batches():
            training.update(inputs, targets)
            progress.update(characters)
            if training.step % params.eval_interval == 0 or training.step == params.steps:
                now = training.report()
                progress.set_postfix(loss=f"{now.train_loss:.3f}", validation=f"{now.val_loss:.3f}")
                if report:
                    report(now)
            if snapshots:
                due, stop = training.workers.any(snapshots.due(), bool(signals))
                if due or stop:
                    training.save(snapshots)
                if stop:
                    raise StoppedError(
                        f"stopped by {' '.join(signals) or 'another process'} after step {training.step} of "
                        f"{params.steps}; the state is saved, and the same command goes on from there"
                    )
    training.finish()
    return training.reports


class _Training:
    """A training under way: all that changes from step to step, and what changes it."""

    def __init__(
        self, model: MiniGPT, train_tokens: Ids, val_tokens: Ids, params: TrainParams, workers: Workers
    ):
        params.require_length(len(train_tokens))
        if len(val_tokens) < 2:
            raise InputError("the validation text needs at least 2 characters")
        if params.batch_size % (workers.count * params.grad_accumulation):
            raise InputError(
                f"batch_size: {params.batch_size} cannot be shared out among {workers.count} processes in "
                f"{params.grad_accumulation} parts each"
            )
        self.model, self.params, self.workers = model, params, workers
        self.train_tokens, self.val_tokens = train_tokens, val_tokens
        self.device = workers.device
        self.precision = choose_precision(params.precision, self.device)
        self.flops_peak = matmul_peak(self.device, self.precision) * workers.count
        parallel = parallelise(model, params.sharding, workers)
        self.forward: Callable[[Tensor], Tensor] = parallel
        if params.compile:
            quote_compiler_paths()
            self.forward = torch.compile(parallel)
        self.optimizers = make_optimizers(model, params)
        self.step = 0
        self.measured: list[Tensor] = []  # loss and gradient norm of each step since the last report, (2,)
        self.reports: list[Report] = []
        self.best_weights: dict[str, Tensor] = {}
        self.timed_from, self.timed_steps = time.perf_counter(), 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of the batch of each step that is left, on its device."""
        size, block_size = self.params.batch_size, self.model.config.block_size
        batches = RandomBatches(self.train_tokens, size, block_size, self.params.seed)
        left = range(self.step + 1, self.params.steps + 1)
        return _on_device(map(batches.at, left), self.workers)

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """One step of the optimizers; inputs and targets are (batch, time)."""
        step = self.step + 1
        if self.model.config.attention_dropout or self.model.config.mlp_dropout:
            # Seeded for each step, so that no generator's state has to be kept to go on from here.
            seed = np.random.SeedSequence((self.params.seed, step, self.workers.rank))
            torch.manual_seed(int(seed.generate_state(1)[0]))
        parts = self.params.grad_accumulation
        loss = torch.zeros((), device=self.device)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for inputs_part, targets_part in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            part_loss = next_char_loss(self.forward, inputs_part, targets_part, self.precision) / parts
            part_loss.backward()
            loss += part_loss.detach()
        norm = clip_gradients(self.model, self.params.grad_clip)
        measured = torch.stack([loss, norm])
        # To look at a number on a GPU is to wait for it; there only reports and saving do.
        if self.device.type == "cpu":
            self._require_finite(measured[None], step, " before it")
        set_learning_rate(self.optimizers, learning_rate_at(step, self.params))
        for optimizer in self.optimizers:
            optimizer.step()
        self.step = step
        self.measured.append(measured)
        self.timed_steps += 1

    def report(self) -> Report:
        """Measure where training stands, and note it."""
        train_loss = self._mean_measured()[:, 0].mean().item()
        characters = self.timed_steps * self.params.batch_size * self.model.config.block_size
        rate = characters / (time.perf_counter() - self.timed_from)
        windows = spaced_batches(
            self.val_tokens, self.params.batch_size, self.model.config.block_size, self.params.eval_batches
        )
        val_loss = mean_loss(self.model, _on_device(windows, self.workers), self.precision, self.workers)
        if not math.isfinite(val_loss):
            raise InputError(
                _diverged(f"after step {self.step} the validation loss is {val_loss}", self.params)
            )
        now = Report(
            self.step,
            train_loss,
            val_loss,
            self.optimizers[0].param_groups[0]["lr"],
            rate,
            rate * self.model.flops_per_token / self.flops_peak,
        )
        if self.params.keep == "best" and now.val_loss < min(
            (past.val_loss for past in self.reports), default=math.inf
        ):
            self.best_weights = whole_weights(self.model)
        self.reports.append(now)
        self.measured.clear()
        self.timed_from, self.timed_steps = time.perf_counter(), 0
        return now

    def save(self, snapshots: Snapshots) -> None:
        """Write all that changes; the processes call it together, and the first one writes."""
        measured = self._mean_measured().cpu()  # first, since it refuses to save what has gone wrong
        state = whole_state(self.model, self.optimizers)
        if self.workers.rank == 0:
            state["step"] = self.step
            state["measured"] = measured
            state["reports"] = [tuple(report) for report in self.reports]
            state["best_weights"] = self.best_weights
            snapshots.save(self.step, state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `save` wrote."""
        load_whole_state(self.model, self.optimizers, state)
        self.step, self.best_weights = state["step"], state["best_weights"]
        self.measured = list(state["measured"].to(self.device).unbind())
        self.reports = [Report(*values) for values in state["reports"]]

    def finish(self) -> None:
        """Leave the model with the weights to keep, ready for use."""
        if self.params.keep == "best":
            load_whole_weights(self.model, self.best_weights)
        self.model.eval()

    def _mean_measured(self) -> Tensor:
        """Loss and gradient norm of the steps since the last report, mean of all processes': (steps, 2)."""
        if not self.measured:
            return torch.empty(0, 2)
        measured = self.workers.mean(torch.stack(self.measured))
        self._require_finite(measured, self.step - len(measured) + 1, "")
        return measured

    def _require_finite(self, measured: Tensor, first_step: int, when: str) -> None:
        """Refuse losses and gradient norms, (steps, 2), that are not numbers; `first_step` is the first's."""
        bad = ~measured.isfinite().all(1)
        if bad.any():
            index = int(bad.nonzero()[0])
            loss, norm = measured[index].tolist()
            raise InputError(
                _diverged(
                    f"step {first_step + index}: the loss is {loss:.4g} and the gradient's norm {norm:.4g}; "
                    f"training stopped{when}",
                    self.params,
                )
            )


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


@torch.no_grad()
def mean_loss(
    model: MiniGPT, batches: Iterable[tuple[Tensor, Tensor]], precision: torch.dtype, workers: Workers
) -> float:
    """Mean loss of all processes' batches, in nats a character, without dropout."""
    was_training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64)  # nats, characters
    for inputs, targets in batches:
        nats = next_char_loss(model, inputs, targets, precision, reduction="sum")
        total += torch.tensor([nats, targets.numel()], dtype=torch.float64)
    model.train(was_training)
    nats, characters = workers.mean(total).tolist()
    return nats / characters


def best_report(reports: list[Report]) -> Report:
    """The one with the lowest validation loss, the first of equals."""
    return min(reports, key=lambda report: report.val_loss)


def _diverged(what: str, params: TrainParams) -> str:
    return (
        f"{what}; try a lower learning_rate ({params.learning_rate:g} now), more warmup_steps "
        f"({params.warmup_steps} now) or precision fp32"
    )


def _on_device(batches: Iterable[tuple[Batch, Batch]], workers: Workers) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's rows of the batches, on its device; on a GPU copied a batch ahead of their use."""
    ahead: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        inputs, targets = (workers.share(torch.from_numpy(part)) for part in batch)
        if workers.device.type == "cuda":
            # From pinned memory the copy runs beside the computation of the batch before.
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        ahead.append(
            (inputs.to(workers.device, non_blocking=True), targets.to(workers.device, non_blocking=True))
        )
        if len(ahead) > 1:
            yield ahead.pop(0)
    yield from ahead

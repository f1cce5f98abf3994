"""The training loop: take a batch, measure the loss, step against its gradient, report now and then."""

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from minilm.batches import Batch, RandomBatches, spaced_batches
from minilm.errors import InputError
from minilm.model import MiniGPT
from minilm.optim import adamw
from minilm.params import TrainParams
from minilm.tokenizer import Ids


class Report(NamedTuple):
    """How training stands after `step` updates."""

    step: int
    train_loss: float  # nats a character, mean over the batches since the last report
    val_loss: float  # nats a character, mean over fixed windows of the validation split
    learning_rate: float
    tokens_per_second: float  # characters trained on, the time for reports left out


def train(
    model: MiniGPT,
    train_tokens: Ids,
    val_tokens: Ids,
    params: TrainParams,
    report: Callable[[Report], None] | None = None,
) -> list[Report]:
    """Train the model where it is, on its device; it is left in evaluation mode.

    Args:
        model: changed in place.
        train_tokens: (tokens,), at least block_size + 2.
        val_tokens: (tokens,), at least 2.
        params: the recipe; its fields for the model's shape are not looked at.
        report: called every eval_interval steps and after the last one.

    Returns:
        All reports. Same weights, tokens, params and thread count: same reports, but for the times.

    Raises:
        InputError: a text is too short, or the loss is no longer finite.
    """
    device, block_size = model.token_embedding.weight.device, model.config.block_size
    params.require_length(len(train_tokens))
    batches = RandomBatches(train_tokens, params.batch_size, block_size, params.seed)
    if len(val_tokens) < 2:
        raise InputError("the validation text needs at least 2 characters")
    optimizer = adamw(
        model, params.learning_rate, (params.adam_beta1, params.adam_beta2), params.weight_decay
    )
    reports: list[Report] = []
    losses: list[Tensor] = []
    # Dropout draws from torch's global generators: seed them here, give them back as they were.
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(
            total=params.steps * params.batch_size * block_size,
            unit=" characters",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None,  # only on a terminal
        ) as progress,
    ):
        torch.manual_seed(params.seed)
        model.train()
        start = time.perf_counter()
        for step in range(1, params.steps + 1):
            losses.append(train_step(model, optimizer, *next(batches), params.grad_clip))
            progress.update(params.batch_size * block_size)
            if step % params.eval_interval == 0 or step == params.steps:
                train_loss = torch.stack(losses).mean().item()
                rate = len(losses) * params.batch_size * block_size / (time.perf_counter() - start)
                if not math.isfinite(train_loss):
                    raise InputError(f"the loss is {train_loss} by step {step}; take a lower learning_rate")
                windows = spaced_batches(val_tokens, params.batch_size, block_size, params.eval_batches)
                val_loss = mean_loss(model, windows)
                progress.set_postfix(loss=f"{train_loss:.3f}", validation=f"{val_loss:.3f}")
                reports.append(Report(step, train_loss, val_loss, optimizer.param_groups[0]["lr"], rate))
                if report:
                    report(reports[-1])
                losses.clear()
                start = time.perf_counter()
    model.eval()
    return reports


def train_step(
    model: MiniGPT, optimizer: torch.optim.Optimizer, inputs: Batch, targets: Batch, grad_clip: float
) -> Tensor:
    """One update; inputs and targets are (batch, time). Returns the loss before it, in nats a character."""
    loss = next_char_loss(model, inputs, targets)
    optimizer.zero_grad()
    loss.backward()
    if grad_clip:
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    return loss.detach()


def next_char_loss(model: MiniGPT, inputs: Batch, targets: Batch) -> Tensor:
    """Mean cross-entropy of the next character, in nats: (batch, time) twice -> ()."""
    device = model.token_embedding.weight.device
    logits = model(torch.from_numpy(inputs).to(device))  # (batch, time, vocabulary)
    return F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).to(device).flatten())


@torch.no_grad()
def mean_loss(model: MiniGPT, batches: Iterable[tuple[Batch, Batch]]) -> float:
    """Mean loss over batches of equal size, in nats a character, without dropout."""
    model.eval()
    losses = [next_char_loss(model, inputs, targets) for inputs, targets in batches]
    model.train()
    return torch.stack(losses).mean().item()

"""Several processes that train one model, each on its share of every batch.

torchrun starts them and says in the environment which one each is. Without it there is one.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from minilm.device import choose_device
from minilm.errors import InputError, WorkerLost
from minilm.model.gpt import MiniGPT


@dataclass(frozen=True)
class Workers:
    """The processes that train together, as one of them sees them."""

    device: torch.device  # of this one
    rank: int = 0  # of this one; only the first writes files and logs
    count: int = 1
    host_group: Any = None  # for agreements between the processes, which wait for no GPU

    def share(self, batch: Tensor) -> Tensor:
        """This process's rows of a batch: (batch, ...) -> (batch / count, ...)."""
        return batch[self.rank :: self.count]

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all processes' values, of any shape; each gets the same."""
        if self.count == 1:
            return values
        # In float64 the sum of some float32 values is exact, whatever their order.
        together = values.to(self.device, torch.float64, copy=True)
        dist.all_reduce(together)
        return (together / self.count).to(values.dtype)

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether it is set in any process; each gets the same."""
        if self.count == 1:
            return list(flags)
        together = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(together, dist.ReduceOp.MAX, group=self.host_group)
        return together.bool().tolist()


@contextmanager
def join_workers(device_name: str) -> Iterator[Workers]:
    """This process's place among those that torchrun has started; alone, if it has not.

    Raises:
        InputError: the device is unavailable.
        WorkerLost: the connection to another process failed.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Workers(choose_device(device_name))
        return
    device = choose_device(device_name, int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    signal.signal(signal.SIGTERM, _terminate)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Workers(device, dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))
    except RuntimeError as error:
        # A collective operation that fails raises DistError with NCCL. With Gloo it is a plain RuntimeError,
        # as most errors of torch are; but it names the place in Gloo's code.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        # torchrun now ends the other processes; this one first says why. (Until here `_terminate` waited.)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = str(error).strip().split("\n")[0]
        raise WorkerLost(
            f"the connection to another process of this training failed ({reason}); "
            "the same command resumes from the last checkpoint"
        ) from error
    finally:
        dist.destroy_process_group()


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End this process as the signal would, unless an error is propagating, which has yet to be reported."""
    if sys.exception() is None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def parallelize(model: MiniGPT, sharding: str, workers: Workers) -> nn.Module:
    """The model as the processes train it together: what is called in place of `model`.

    `none` keeps a copy in each process and averages the gradients ("PyTorch Distributed: Experiences on
    Accelerating Data Parallel Training", Li et al., 2020). `fsdp` leaves each process a shard of every
    parameter, its gradient and its optimizer state, and gathers a block when it is computed ("PyTorch FSDP:
    Experiences on Scaling Fully Sharded Data Parallel", Zhao et al., 2023).

    Raises:
        InputError: fsdp without torchrun.
    """
    if sharding == "fsdp":
        from torch.distributed.fsdp import fully_shard  # takes half a second to import

        if not dist.is_initialized():
            raise InputError("sharding: fsdp needs processes; set launcher to torchrun, see docs/training.md")
        mesh = dist.init_device_mesh(workers.device.type, (workers.count,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    if workers.count > 1:
        devices = [workers.device] if workers.device.type == "cuda" else None
        together = DistributedDataParallel(model, device_ids=devices)
        # After its first backward pass DDP reorders the gradients, and sums them in another order from
        # then on. So that pass is not a step's: the first one, or the first after an interruption.
        together(torch.zeros(1, 1, dtype=torch.long, device=workers.device)).sum().backward()
        model.zero_grad()
        return together
    return model


def gradients_summed(parallel: nn.Module, summed: bool) -> AbstractContextManager[None]:
    """Whether the backward passes of the block sum the gradients of all processes.

    Of a step's micro-batches only the last one's need to, since gradients add up until then.
    """
    if isinstance(parallel, DistributedDataParallel) and not summed:
        return parallel.no_sync()
    return nullcontext()


# The state of a model whose processes may each hold a shard of it. All processes call each function
# together. If the model is sharded, only the first process gets the result.


def full_state(model: MiniGPT, optimizers: Sequence[Optimizer] = ()) -> dict[str, Any]:
    """Weights and optimizer state, on the CPU if they are sharded, else where they are."""
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import get_state_dict

        weights, states = get_state_dict(model, optimizers, options=_full())
        return {"model": weights, "optimizers": states}
    return {"model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}


def load_full_state(model: MiniGPT, state: dict[str, Any], optimizers: Sequence[Optimizer] = ()) -> None:
    """What `full_state` gave for the same optimizers, back into model and optimizers."""
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        set_model_state_dict(model, {**state["model"]}, options=_full())
        if optimizers:
            set_optimizer_state_dict(model, optimizers, state["optimizers"], options=_full())
    else:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def full_model(model: MiniGPT) -> MiniGPT:
    """The model itself or, if it is sharded, in the first process a copy that has all the weights."""
    if not is_sharded(model):
        return model
    weights, full = full_state(model)["model"], MiniGPT(model.config).eval()
    if weights:
        full.load_state_dict(weights)
    return full


def is_sharded(model: MiniGPT) -> bool:
    """Whether each process holds only a shard of the parameters: fully_shard adds methods to the model."""
    return hasattr(model, "unshard")


def _full() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)

"""Several processes as one training: torchrun's environment, DDP, FSDP2, and what all agree on.

No other file knows of process groups. The model does not know how it is spread: its blocks are
found, not named. Small figures travel between CPUs by gloo, gradients and weights by the device's
own backend.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from opensana.device import resolve_device
from opensana.errors import ConfigError, OpensanaError
from opensana.train.engine.compilation import exact_backward, narrow_vectors
from opensana.train.engine.shards import is_sharded, local
from opensana.train.recipe import ParallelRecipe

CPU = torch.device("cpu")
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
# What gloo and NCCL say when another process is gone.
LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out")


@dataclass(frozen=True)
class Processes:
    """This rank. With one process every collective returns its input."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU
    sharded: bool = False

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def writers(self) -> int:
        """How many processes write the files of a checkpoint."""
        return self.count if self.sharded else 1

    def slots(self, batch: int, accumulate: int) -> list[range]:
        """This rank's slots in the global batch, one range for each micro-batch."""
        size, left = divmod(batch, self.count * accumulate)
        if left or not size:
            raise ConfigError(
                f"`batch` is {batch}; it must be a multiple of {self.count * accumulate}:"
                f" {self.count} processes x {accumulate} micro-batches (`accumulate`)"
            )
        start = self.rank * accumulate * size
        return [
            range(first, first + size) for first in range(start, start + accumulate * size, size)
        ]

    def all_gather(self, values: Tensor) -> Tensor:
        """Values [..., n] of all processes, in order of rank: [..., count * n] on the CPU."""
        values = values.detach().cpu().contiguous()
        if self.alone:
            return values
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values)
        return torch.cat(parts, dim=-1)

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value averaged over the processes."""
        if self.alone:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.count).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.all_gather(torch.tensor([flag])).any())

    def broadcast(self, number: int) -> int:
        """Broadcast an integer from rank 0."""
        return int(self.all_gather(torch.tensor([number]))[0])

    def broadcast_object(self, value: Any) -> Any:
        """Broadcast any picklable value from rank 0."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """An error in one process ends all of them, and only one of them says why."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        failed = self.all_gather(torch.tensor([problem is not None]))
        if failed.any():
            if problem and int(failed.byte().argmax()) == self.rank:
                raise problem
            raise SystemExit(1)

    def average(self, values: Tensor) -> Tensor:
        """The mean of the values of all processes, where they are; in place."""
        if self.alone:
            return values
        dist.all_reduce(values)
        return values.div_(self.count)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """All-reduce; for a network small enough to need no overlap with the backward pass."""
        for parameter in parameters:
            if parameter.grad is not None:
                self.average(parameter.grad)


ALONE = Processes()


@contextmanager
def started(recipe: ParallelRecipe) -> Iterator[Processes]:
    """Join the other processes of torchrun, if there are any."""
    if not all(name in os.environ for name in LAUNCHED) or os.environ["WORLD_SIZE"] == "1":
        yield Processes(device=training_device(recipe.device))
        return
    local = int(os.environ["LOCAL_RANK"])
    device = training_device(recipe.device, local)
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=recipe.timeout))
    processes = Processes(dist.get_rank(), dist.get_world_size(), device, recipe.mode == "fsdp")
    try:
        yield processes
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in LOST):
            raise
        raise OpensanaError(
            f"process {processes.rank} lost another process of the run"
            f" ({str(error).splitlines()[0]}). Saved checkpoints are untouched; the same command"
            " resumes"
        ) from error
    dist.destroy_process_group()


def training_device(name: str, local: int = 0) -> torch.device:
    """`auto` is this process's CUDA device, else the CPU; others are taken at their word."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return resolve_device(f"cuda:{local}" if name == "cuda" else name)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the model's outermost module lists: what is sharded and recomputed."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


def distributed(
    model: nn.Module,
    recipe: ParallelRecipe,
    processes: Processes,
    *,
    half: bool = False,
    compiled: bool = False,
) -> nn.Module:
    """The module to call in training; its parameters are the model's, sharded if so asked.

    `half`: FSDP gathers weights in bfloat16; masters, gradients and their sum stay float32.
    """
    if recipe.checkpoint_activations:
        for block in blocks(model):
            recompute(block)
    if processes.alone:
        return model
    if compiled:
        exact_backward()
        narrow_vectors()
        for block in blocks(model):
            block.compile()
    if processes.sharded:
        return shard(model, half=half)
    # Gradients of depthwise kernels have other strides; they are copied.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


def recompute(block: nn.Module) -> None:
    """Activation checkpointing: the backward pass recomputes all but the block's inputs."""
    block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def shard(model: nn.Module, *, half: bool = False) -> nn.Module:
    """FSDP2: shard each block's parameters, then the rest, by rows over all ranks; in place."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if half:
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            output_dtype=torch.float32,
            cast_forward_inputs=False,
        )
    warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nobody writes to it
    for module in (*blocks(model), model):
        fully_shard(module, mp_policy=policy, reshard_after_forward=True)
    return model


def accumulating(engine: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """DDP reduces gradients once, after the last micro-batch; FSDP after each, to stay sharded."""
    if isinstance(engine, DistributedDataParallel) and not last:
        return engine.no_sync()
    return nullcontext()


def clip_gradients(parameters: list[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a global norm of at most `limit`; returns the norm [] before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if is_sharded(norm) else norm
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def sum_of_shards(values: Tensor) -> Tensor:
    """The sum of a plain tensor over all processes, in place."""
    dist.all_reduce(values)
    return values


def own(state: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """What this process saves: its rows of sharded tensors; the first also what all hold."""
    return {
        name: local(value) for name, value in state.items() if processes.first or is_sharded(value)
    }


def unsharded(state: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """All-gathered copies on the CPU of rank 0, and nothing elsewhere; all ranks must call."""
    full: dict[str, Tensor] = {}
    for name, value in state.items():
        tensor = value.full_tensor() if is_sharded(value) else value
        if processes.first:
            full[name] = tensor.detach().to("cpu", copy=True)
    return full

"""How many bytes a training holds and saves, from the shapes of its parameters."""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from opensana.train.engine.parallel import ALONE, Processes
from opensana.train.optim.came import is_factored
from opensana.train.optim.optimizers import Optimizers, is_matrix

FLOAT = 4  # bytes of weights, gradients, averages and optimiser state


def held(shape: torch.Size, processes: Processes) -> int:
    """The elements of a tensor that the first process holds: FSDP cuts rows as torch.chunk does."""
    if not processes.sharded:
        return prod(shape)
    return -(-shape[0] // processes.count) * prod(shape[1:])


def tensor_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Of whole tensors, however they are sharded."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def optimizer_bytes(
    name: str, trained: Mapping[str, nn.Parameter], processes: Processes = ALONE
) -> int:
    """What an optimiser of that name keeps of the parameters."""
    return FLOAT * sum(
        held(p.shape, processes) + _second_moment(name, key, p, processes)
        for key, p in trained.items()
    )


def expected_bytes(optimizer: Optimizers) -> int:
    """The state of an optimiser that may not have made a step yet."""
    named = {optimizer.names[id(p)]: p for p in optimizer.parameters}
    return optimizer_bytes(optimizer.name, named)


def _second_moment(name: str, key: str, parameter: nn.Parameter, processes: Processes) -> int:
    """The elements that an optimiser keeps of a parameter beside its running mean."""
    if name == "muon" and is_matrix(key, parameter):
        return 0
    if name == "came" and is_factored(parameter):
        rows, columns = parameter.shape[:2]
        return 2 * (held(torch.Size([rows]), processes) + columns)
    return held(parameter.shape, processes)

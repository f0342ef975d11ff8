"""Tensors whose rows are sharded over the processes: torch's DTensor, read and built by rows.

To import that class takes seconds, which a training in one process saves.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from opensana.train.checkpoints.stored import rows_of, shape_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard["DTensor"]:
    """Whether it is a DTensor."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor that are here; any other tensor as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rows_like(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros of a shape that begins as the tensor's does, its rows sharded alike."""
    here = local(tensor)
    if not is_sharded(tensor):
        return here.new_zeros(shape, requires_grad=False)
    zeros = here.new_zeros((len(here), *shape[1:]), requires_grad=False)
    return _rebuilt(zeros, tensor, torch.Size(shape))


def resharded(stored: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """A stored tensor with the device, layout and sharding of `like`.

    What has another shape than `like`, such as a count of steps, is taken as it is.
    """
    if is_sharded(like) and shape_of(stored, name) == tuple(like.shape):
        here, start = like.to_local(), first_row(like)
        values = rows_of(stored, name, start, start + len(here))
        return _rebuilt(torch.empty_like(here).copy_(values), like, like.shape)
    value = stored[name]
    if value.shape != like.shape:
        return value.to(local(like).device, copy=True)
    return torch.empty_like(like, requires_grad=False).copy_(value)


def first_row(tensor: "DTensor") -> int:
    """Where the rows of this process begin: as torch.chunk cuts them."""
    size = -(-tensor.shape[0] // tensor.device_mesh.size())
    return min(tensor.device_mesh.get_local_rank() * size, tensor.shape[0])


def _rebuilt(values: Tensor, like: "DTensor", shape: torch.Size) -> Tensor:
    from torch.distributed.tensor import DTensor

    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        values, like.device_mesh, like.placements, run_check=False, shape=shape, stride=stride
    )

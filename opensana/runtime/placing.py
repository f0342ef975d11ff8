"""A loaded network where and as it runs: device, number format, alignment, packed or fused."""

from typing import TypeVar

import torch
from torch import nn

from opensana.autoencoder.model import Autoencoder
from opensana.device import resolve_dtype
from opensana.runtime.fused import fuse
from opensana.runtime.fused_autoencoder import fuse_autoencoder
from opensana.runtime.fused_text import fuse_norms
from opensana.runtime.packed import can_pack, pack
from opensana.transformer.model import Stack
from opensana.weights.aligned import ALIGNMENT

Module = TypeVar("Module", bound=nn.Module)


def place(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """The module where and as it will run.

    Tensors mapped from a file start anywhere; kernels round differently there, so that a loaded
    model would differ in its last bits from the one that was saved. If one has to be copied, all
    are: one that stays would keep in memory what was read of the whole file.
    """
    module.to(device, dtype)
    tensors = [*module.parameters(), *module.buffers()]
    if any(x.device.type == "cpu" and x.data_ptr() % ALIGNMENT for x in tensors):
        unmap(module)
    return module


def unmap(module: nn.Module) -> None:
    """Copy all tensors, so that what was read of a mapped file leaves memory.

    A buffer is replaced: as a view it would keep the tensor that it was cut from.
    """
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    for part in module.modules():
        for name, tensor in list(part.named_buffers(recurse=False)):
            setattr(part, name, tensor.detach().clone())


def prepare_for_inference(
    module: Module, device: torch.device, dtype: torch.dtype, *, at: torch.device | None = None
) -> Module:
    """The module placed; on a CPU with its layers packed, on CUDA with its blocks or norms fused.

    `at` is where its weights lie until its turn on the device comes (`offload.py`).
    """
    place(module, at or device, dtype)
    if can_pack(device, dtype):
        pack(module)
    elif device.type == "cuda" and isinstance(module, Stack):
        fuse(module)
    elif device.type == "cuda" and isinstance(module, Autoencoder):
        fuse_autoencoder(module)
    elif device.type == "cuda":
        fuse_norms(module)
    return module


def part_dtype(device: torch.device, transformer: torch.dtype) -> torch.dtype:
    """Text encoder and autoencoder follow the transformer, but overflow in float16."""
    if transformer != torch.float16:
        return transformer
    return resolve_dtype(device, None, torch.bfloat16)

"""A loaded network where and as it runs: device, number format, alignment, packed layers."""

from typing import TypeVar

import torch
from torch import nn

from opensana.device import resolve_dtype
from opensana.runtime.packed import can_pack, pack

ALIGNMENT = 64


Module = TypeVar("Module", bound=nn.Module)


def place(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """The module where and as it will run.

    Tensors mapped from a file start anywhere; kernels round differently there, so that a loaded
    model would differ in its last bits from the one that was saved.
    """
    module.to(device, dtype)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return module


def prepare_for_inference(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """The module placed, and its linear layers packed where that is faster."""
    place(module, device, dtype)
    if can_pack(device, dtype):
        pack(module)
    return module


def part_dtype(device: torch.device, transformer: torch.dtype) -> torch.dtype:
    """Text encoder and autoencoder follow the transformer, but overflow in float16."""
    if transformer != torch.float16:
        return transformer
    return resolve_dtype(device, None, torch.bfloat16)

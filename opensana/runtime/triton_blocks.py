"""A transformer's linear attention and Mix-FFN by the kernels in Triton, applied from outside.

For drawing on CUDA, never needed: what has no kernel, and all that wants gradients, runs in torch.
"""

import os
from importlib.util import find_spec

import torch
from torch import nn

from opensana.errors import ConfigError
from opensana.layers.mix_ffn import MixFFN
from opensana.runtime.fused import FusedSelfAttention
from opensana.transformer.attention import SelfAttention


def has_triton() -> bool:
    """Whether Triton is installed: torch for CUDA brings it on Linux."""
    return find_spec("triton") is not None


def use_triton(network: nn.Module, device: torch.device) -> None:
    """Have the blocks of a placed network, plain or fused, call the kernels; its state dict stays.

    On a CPU Triton's interpreter runs them, with TRITON_INTERPRET=1 in the environment: for tests.
    ConfigError where there is no Triton, no CUDA, or a size of heads that has no kernel.
    """
    if not has_triton():
        raise ConfigError(
            "kernels for a GPU need Triton, and it is not installed: install it (torch for CUDA "
            "brings it on Linux), or leave kernels out"
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(f"kernels in Triton are for CUDA, got {device.type}; leave kernels out")
    from opensana.runtime import triton_kernels as kernels

    changed = 0
    for part in network.modules():
        if isinstance(part, SelfAttention | FusedSelfAttention):
            fused = isinstance(part, FusedSelfAttention)
            size = part.width if fused else part.to_q.out_features // part.heads
            if size not in kernels.HEADS:
                known = ", ".join(map(str, kernels.HEADS))
                raise ConfigError(
                    f"the kernels are for heads of {known} channels, this model's have {size}; "
                    "leave kernels out"
                )
            part.core = kernels.linear_attention
            changed += 1
        elif isinstance(part, MixFFN):
            part.middle = kernels.gate_depthwise
            changed += 1
    assert changed, "no plain block is left in this network"

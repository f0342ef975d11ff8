"""The kernels in Triton beside their plain forms, in a block's shapes of 0.6B."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.measuring import attempt, milliseconds, relative
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import transformer_config
from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.mix_ffn import depthwise_gated
from opensana.runtime.triton_blocks import has_triton
from opensana.transformer.attention import split_heads

SIDES = (32, 64, 128)
"""Of the map of tokens: 1024, 2048 and 4096 pixels."""


def run(setting: Setting, note: Note) -> None:
    for side in (4,) if setting.tiny else SIDES:
        for name, (plain, fused) in pairs(setting, side).items():
            note(f"{name}_{side * side}", compared(setting, plain, fused))


@torch.inference_mode()
def pairs(setting: Setting, side: int) -> dict[str, tuple[Callable, Callable]]:
    """Plain form and kernel of linear attention, and of the Mix-FFN's middle."""
    config = transformer_config("sana_600m_1024", tiny=setting.tiny)
    device, dtype = setting.device, setting.dtype
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator).to(dtype)

    heads = [
        split_heads(random(2, side * side, config.width), config.num_attention_heads)
        for _ in range(3)
    ]
    wide = 2 * config.hidden
    layer = nn.Conv2d(wide, wide, 3, padding=1, groups=wide).to(device, dtype)
    middle = random(2, side, side, wide).permute(0, 3, 1, 2)

    def kernels() -> Any:
        if device.type != "cuda" or not has_triton():
            raise NotImplementedError("the kernels are for CUDA with Triton")
        from opensana.runtime import triton_kernels

        return triton_kernels

    return {
        "linear_attention": (
            lambda: relu_linear_attention(*heads),
            lambda: kernels().linear_attention(*heads),
        ),
        "gate_depthwise": (
            lambda: depthwise_gated(layer, middle),
            lambda: kernels().gate_depthwise(layer, middle),
        ),
    }


@torch.inference_mode()
def compared(setting: Setting, plain: Callable, fused: Callable) -> dict[str, Any]:
    def both() -> dict[str, Any]:
        error = relative(fused(), plain())
        return {**milliseconds(setting, {"triton": fused}, times=10), "relative_error": error}

    found = milliseconds(setting, {"plain": plain}, times=10)
    kernel = attempt(setting, both)
    return {**found, **(kernel if isinstance(kernel, dict) else {"triton": kernel})}

"""The kernels in Triton beside their plain forms, in a block's shapes of 0.6B.

And the ways in which a decoder's norms, its doubled maps and the whole of it may run, in the shapes
of 1024 pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu.measuring import attempt, milliseconds, relative
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import autoencoder_config, fill, transformer_config
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.resample import Upsample
from opensana.layers import RMSNorm2d
from opensana.layers.convolution import conv_of_doubled
from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.mix_ffn import depthwise_gated
from opensana.runtime.fused_autoencoder import FusedNorm, fuse_autoencoder
from opensana.runtime.fused_resample import FusedUpsample
from opensana.runtime.triton_blocks import has_triton
from opensana.transformer.attention import split_heads

SIDES = (32, 64, 128)
"""Of the map of tokens: 1024, 2048 and 4096 pixels."""
STAGES = ((128, 1024), (256, 512), (512, 256))
"""Channels and side of the decoder's maps with ResBlocks."""
Ways = dict[str, Callable[[], torch.Tensor]]


def run(setting: Setting, note: Note) -> None:
    for side in (4,) if setting.tiny else SIDES:
        for name, (plain, fused) in pairs(setting, side).items():
            note(f"{name}_{side * side}", compared(setting, plain, fused))
    with torch.inference_mode():
        for channels, side in ((8, 8),) if setting.tiny else STAGES:
            shape = f"{channels}x{side}x{side}"
            note(f"norm_and_residual_{shape}", timed(setting, norms(setting, channels, side)))
            note(f"doubled_to_{shape}", timed(setting, doublings(setting, channels, side)))
        note("decode", timed(setting, decodings(setting)))


def norms(setting: Setting, channels: int, side: int) -> Ways:
    """x + norm(branch) in nine passes and in three."""
    plain = RMSNorm2d(channels).to(setting.device, setting.dtype).requires_grad_(False)
    fused = FusedNorm(plain)
    x, branch = (map_of(setting, channels, side, seed) for seed in (0, 1))
    return {"plain": lambda: plain(branch) + x, "fused": lambda: fused.add(x, branch)}


def doublings(setting: Setting, channels: int, side: int) -> Ways:
    """From twice the channels at half the side: whole, by four kernels, and by four kernels with
    one pass that puts their parts together.
    """
    plain = Upsample(2 * channels, channels, kind="interpolate", shortcut=False)
    fill(plain)
    in_channels_last(plain.to(setting.device, setting.dtype)).requires_grad_(False)
    x, weight, bias = map_of(setting, 2 * channels, side // 2), plain.conv.weight, plain.conv.bias
    fused = FusedUpsample(plain)

    def whole() -> torch.Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)

    return {
        "plain": whole,
        "four_kernels": lambda: conv_of_doubled(x, weight, bias),
        "fused": lambda: fused(x),
    }


def decodings(setting: Setting) -> Ways:
    """A picture of 1024 pixels by the plain decoder, by that in channels last, and fused."""
    config = autoencoder_config(tiny=setting.tiny)
    networks: dict[str, Autoencoder] = {}
    for name in ("plain", "channels_last", "fused"):
        with setting.device:
            network = Autoencoder(config).eval().requires_grad_(False)
        fill(network)
        networks[name] = network.to(setting.dtype)
    in_channels_last(networks["channels_last"])
    fuse_autoencoder(networks["fused"])
    side = 2 if setting.tiny else 32
    latent = map_of(setting, config.latent_channels, side)
    latents = dict.fromkeys(networks, latent) | {"plain": latent.contiguous()}
    return {
        name: lambda name=name, network=network: network.decode(latents[name])
        for name, network in networks.items()
    }


def in_channels_last(module: Any) -> nn.Module:
    return module.to(memory_format=torch.channels_last)


def map_of(setting: Setting, channels: int, side: int, seed: int = 0) -> torch.Tensor:
    """[1, channels, side, side], channels last."""
    generator = torch.Generator(setting.device).manual_seed(seed)
    numbers = torch.randn(1, channels, side, side, device=setting.device, generator=generator)
    return numbers.to(setting.dtype, memory_format=torch.channels_last)


def timed(setting: Setting, ways: Ways) -> object:
    """Milliseconds of each way, and how far the others are from the plain one."""

    def run() -> dict[str, Any]:
        expected = ways["plain"]()
        errors = {name: relative(way(), expected) for name, way in ways.items() if name != "plain"}
        return {**milliseconds(setting, ways), "relative_error": errors}

    return attempt(setting, run)


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

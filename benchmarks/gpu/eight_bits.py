"""Products in 8 bits beside bfloat16, in the six shapes of a block; and whole steps in W8A8."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.measuring import attempt, milliseconds, relative, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import random_transformer, transformer_config
from opensana.flow.guidance import guided_velocity
from opensana.runtime.int8 import int_mm, quantised
from opensana.runtime.placing import place
from opensana.runtime.quantize import Quantization, join_products, quantize
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer

TOKENS = (1024, 2048, 16384)
FLOAT8_MOST = 448.0


def run(setting: Setting, note: Note) -> None:
    config = transformer_config("sana_600m_1024", tiny=setting.tiny)
    for tokens in (64,) if setting.tiny else TOKENS:
        for name, (inner, outer) in shapes(config).items():
            note(f"{name}_{tokens}", product(setting, tokens, inner, outer))
    note("guided_step", attempt(setting, lambda: step(setting, config)))


def shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Channels in and out of a block's products of the image's tokens."""
    width, hidden = config.width, config.hidden
    square = dict.fromkeys(("to_out", "cross_to_q", "cross_to_out"), (width, width))
    return {
        "to_qkv": (width, 3 * width),
        **square,
        "conv_inverted": (width, 2 * hidden),
        "conv_point": (hidden, width),
    }


@torch.inference_mode()
def product(setting: Setting, tokens: int, inner: int, outer: int) -> dict[str, Any]:
    """Milliseconds of one product in each format, quantisation of the tokens included."""
    device, dtype = setting.device, setting.dtype
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, inner, device=device, generator=generator).to(dtype)
    weight = torch.randn(outer, inner, device=device, generator=generator).to(dtype) / inner**0.5
    rows = quantised(weight)

    def in_int8() -> object:
        if device.type == "cpu":
            raise NotImplementedError("a CPU has int8 products of its own")
        found = quantised(x)
        whole = int_mm(found.values, rows.values.t())
        return (whole * rows.scale.t() * found.scale).to(dtype)

    weight8, weight_scale = in_float8(weight)

    def float8() -> object:
        if device.type == "cpu":
            raise NotImplementedError("a CPU has no float8 products")
        tokens8, scale = in_float8(x)
        return torch._scaled_mm(  # pyright: ignore
            tokens8, weight8.t(), scale, weight_scale.t(), out_dtype=torch.bfloat16
        )

    def timed(call: Callable[[], object]) -> float:
        return milliseconds(setting, {"call": call}, times=10)["call"]

    return {
        "plain": timed(lambda: x @ weight.t()),
        "int8": attempt(setting, lambda: timed(in_int8)),
        "float8": attempt(setting, lambda: timed(float8)),
    }


def in_float8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in float8 with a scale each, [..., C] and [..., 1]."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp_min(1e-12) / FLOAT8_MOST
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


@torch.inference_mode()
def step(setting: Setting, config: TransformerConfig) -> dict[str, Any]:
    """A guided step of 0.6B at its native size, plain and in W8A8, and how far they differ."""
    device, dtype = setting.device, setting.dtype
    plain = random_transformer(config, device, dtype)
    with device:  # a loaded network's blocks are packed or fused, and plain ones are quantised
        bare = Transformer(config).eval().requires_grad_(False)
    bare.load_state_dict(plain.state_dict())
    quantize(bare, Quantization("w8a8"))
    place(bare, device, dtype)
    join_products(bare, None)
    calls = {name: guided_step(net) for name, net in (("plain", plain), ("w8a8", bare))}
    error = relative(calls["w8a8"](), calls["plain"]())
    return {**milliseconds(setting, calls), "relative_error": short(error)}


def guided_step(network: Transformer) -> Callable[[], torch.Tensor]:
    config, first = network.config, next(network.parameters())
    side, generator = config.sample_size, torch.Generator(first.device).manual_seed(0)
    shape = (1, config.in_channels, side, side)
    latent = torch.randn(shape, device=first.device, generator=generator)
    time = torch.tensor([500.0], device=first.device)
    texts = []
    for tokens in (30, 2):
        states = torch.randn(
            1, tokens, config.caption_channels, device=first.device, generator=generator
        )
        texts.append(network.fold(network.prepare_text(states)))
    velocities = [lambda x, t, text=text: network.velocity(x, t, text) for text in texts]
    return lambda: guided_velocity(velocities, 4.5)(latent, time)

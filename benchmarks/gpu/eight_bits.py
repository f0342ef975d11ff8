"""Products in 8 bits beside bfloat16, in the six shapes of a block; and whole steps in 8 bits."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.measuring import attempt, milliseconds, relative, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import random_transformer, transformer_config
from opensana.flow.guidance import guided_velocity
from opensana.runtime import float8, int8
from opensana.runtime.placing import place, prepare_for_inference
from opensana.runtime.quantize import Quantization, SchemeName, join_products, quantize
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer

TOKENS = (1024, 2048, 16384)
SCHEMES: tuple[SchemeName, ...] = ("w8a8", "fp8")


def run(setting: Setting, note: Note) -> None:
    config = transformer_config("sana_600m_1024", tiny=setting.tiny)
    for tokens in (64,) if setting.tiny else TOKENS:
        for name, (inner, outer) in shapes(config).items():
            note(f"{name}_{tokens}", product(setting, tokens, inner, outer))
    steps(setting, config, note)


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
    """Milliseconds of one product in each format, quantisation of the tokens included and alone."""
    device, dtype = setting.device, setting.dtype
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, inner, device=device, generator=generator).to(dtype)
    weight = torch.randn(outer, inner, device=device, generator=generator).to(dtype) / inner**0.5
    rows, (values, scale) = int8.signed(weight), float8.quantised(weight)
    eighth = values.view(torch.uint8)

    def timed(call: Callable[[], object]) -> float:
        return milliseconds(setting, {"call": call}, times=10)["call"]

    return {
        "plain": timed(lambda: x @ weight.t()),
        "int8": attempt(setting, lambda: timed(lambda: int8.multiply(x, *rows))),
        "int8_rows": attempt(setting, lambda: timed(lambda: int8.signed(x))),
        "float8": attempt(setting, lambda: timed(lambda: float8.multiply(x, eighth, scale))),
        "float8_rows": attempt(setting, lambda: timed(lambda: float8.quantised(x))),
    }


@torch.inference_mode()
def steps(setting: Setting, config: TransformerConfig, note: Note) -> None:
    """Guided steps of 0.6B at its native size, plain and in 8 bits, and how far they differ."""
    device, dtype = setting.device, setting.dtype
    plain = random_transformer(config, device, dtype)
    state = plain.state_dict()

    def beside(scheme: SchemeName) -> dict[str, Any]:
        with device:  # a loaded network's blocks are packed or fused, and plain ones are quantised
            bare = Transformer(config).eval().requires_grad_(False)
        bare.load_state_dict(state)
        quantize(bare, Quantization(scheme))
        if scheme == "w8a8":
            join_products(place(bare, device, dtype))
        prepare_for_inference(bare, device, dtype)
        calls = {name: guided_step(net) for name, net in (("plain", plain), (scheme, bare))}
        error = relative(calls[scheme](), calls["plain"]())
        return {**milliseconds(setting, calls), "relative_error": short(error)}

    for scheme in SCHEMES:
        note(f"guided_step_{scheme}", attempt(setting, lambda scheme=scheme: beside(scheme)))


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

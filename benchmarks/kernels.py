"""Kernels, bytes and waits of a drawing of the published shapes on an accelerator, counted.

    python -m benchmarks.kernels [--steps 20] [--side 1024] [--tokens 32]

Nothing is computed and no GPU is needed: tensors on torch's `meta` device have shapes alone. All is
counted plain and fused (`runtime/fused.py`, `runtime/fused_autoencoder.py`), in bfloat16: steps of
0.6B with the solver's own part, also in 8 bits, a velocity of the models whose queries and keys are
normed, and decoding and encoding with their operations. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from opensana.autoencoder.model import Autoencoder
from opensana.drawing.solving import solve
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.fused import fuse
from opensana.runtime.fused_autoencoder import fuse_autoencoder
from opensana.runtime.quantize import Quantization, SchemeName, quantize
from opensana.transformer.model import Transformer
from tests import tiny
from tests.launches import Launches

PRESET, NEGATIVE = "sana_600m_1024", 2
NORMED = ("sana_1_5_1600m", "sprint_600m")
AUTOENCODER = "dc_ae_f32c32_sana_1_1"


WAYS: dict[str, tuple[bool, SchemeName | None]] = {
    "plain": (False, None),
    "fused": (True, None),
    "w8a8": (True, "w8a8"),
    "fp8": (True, "fp8"),
}


def model(*, fused: bool, preset: str = PRESET, scheme: SchemeName | None = None) -> Sana:
    with torch.device("meta"):
        transformer = Transformer(transformer_preset(preset)).requires_grad_(False)
        if scheme is not None:
            quantize(transformer, Quantization.named(scheme))
    transformer = transformer.bfloat16()
    if fused:
        fuse(transformer)
    return replace(tiny.sana(instruction="none"), transformer=transformer)


def velocity(sana: Sana, latent: Tensor, tokens: int) -> dict[str, Any]:
    """One velocity of one picture, its timestep prepared as before a drawing."""
    network = sana.transformer
    text = network.fold(network.prepare_text(states(network, tokens)))
    guidance = torch.tensor([4.5]) if network.config.guidance_embeds else None
    moment = network.moment(torch.tensor([500.0]), guidance)
    with Launches() as seen:
        network.velocity(latent, moment, text)
    return figures(seen)


def guided_steps(sana: Sana, latent: Tensor, tokens: int, steps: int) -> dict[str, Any]:
    """Of a guided picture: the mean of a step, and what is done before the first and at the end."""
    network = sana.transformer
    job = sana.job(Request("-", seed=1, steps=steps))
    counts: list[int] = []
    with Launches() as seen:
        texts = [network.fold(network.prepare_text(states(network, n))) for n in (tokens, NEGATIVE)]
        counts.append(seen.count)
        solve(sana, job, texts, [latent], on_step=lambda *_: counts.append(seen.count))
    each = (counts[-1] - counts[1]) / (steps - 1)
    return {
        "kernels_a_step": round(each, 1),
        "kernels_a_velocity": round(each / 2, 1),
        "before_the_first_step": counts[1] - round(each),
        **figures(seen),
    }


def autoencoder(*, fused: bool, preset: str = AUTOENCODER) -> Autoencoder:
    with torch.device("meta"):
        network = Autoencoder(autoencoder_preset(preset)).bfloat16().eval().requires_grad_(False)
        if fused:
            fuse_autoencoder(network)
    return network


def decoding(network: Autoencoder, side: int) -> dict[str, Any]:
    """One picture of `side` pixels decoded."""
    shape = (1, network.latent_channels, side // network.compression, side // network.compression)
    latent = torch.empty(shape, device="meta", dtype=network.dtype)
    return passed(lambda: network.decode(latent))


def encoding(network: Autoencoder, side: int) -> dict[str, Any]:
    """One picture of `side` pixels encoded."""
    pixels = torch.empty(1, 3, side, side, device="meta", dtype=network.dtype)
    return passed(lambda: network.encode(pixels))


def passed(run: Callable[[], object]) -> dict[str, Any]:
    """What one pass through a network takes, with its operations in 10^12."""
    with FlopCounterMode(display=False) as operations:
        run()
    with Launches() as seen:
        run()
    return figures(seen) | {"tera": round(operations.get_total_flops() / 1e12, 2)}


def states(network: Transformer, tokens: int) -> Tensor:
    return torch.empty(1, tokens, network.config.caption_channels, device="meta")


def figures(seen: Launches) -> dict[str, Any]:
    return {
        "kernels": seen.count,
        "gigabytes": round(seen.bytes / 1e9, 2),
        "host_reads": len(seen.host_reads),
        "uploads": len(seen.uploads),
    }


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels, bytes and waits, counted.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=32, help="of the prompt")
    arguments = parser.parse_args()
    latent = torch.empty(1, 32, arguments.side // 32, arguments.side // 32, device="meta")
    results = {}
    for name, (fused, scheme) in WAYS.items():
        sana = model(fused=fused, scheme=scheme)
        results[name] = {
            "velocity": velocity(sana, latent, arguments.tokens),
            "guided": guided_steps(sana, latent, arguments.tokens, arguments.steps),
            **{
                preset: velocity(
                    model(fused=fused, preset=preset, scheme=scheme), latent, arguments.tokens
                )
                for preset in NORMED
            },
        }
        if scheme is None:
            network = autoencoder(fused=fused)
            results[name]["decode"] = decoding(network, arguments.side)
            results[name]["encode"] = encoding(network, arguments.side)
        print(name, results[name], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

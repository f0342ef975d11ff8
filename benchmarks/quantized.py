"""Quantised transformers: time of a guided step of 0.6B, and what 8 and 4 bits cost emoji-256.

    python -m benchmarks.quantized [--sides 512 1024] [--layers 28] [--repeats 5] [--quiet]

Step: the four sides hold the same random float32 weights and see the same latent and texts, as in
transformer_step.py; they alternate in one process and ratios are of medians. Quality: velocities
along real trajectories of the trained model against float32's, with each exception of the paper
lifted in turn, and pictures at equal seeds. The last line is JSON.
"""

import argparse
import copy
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import machine, medians
from benchmarks.transformer_step import GUIDANCE, PRESETS, pair, texts
from opensana.files.user_cache import cache_folder
from opensana.flow.guidance import guided_velocity
from opensana.models.load import load_transformer
from opensana.models.presets import transformer_preset
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime import quantize as quantization
from opensana.runtime.packed import pack
from opensana.runtime.quantize import KEPT, Quantization, join_products, quantize
from opensana.transformer.model import Transformer, TransformerConfig
from opensana.weights.locate import locate

SIGMAS = (0.9, 0.7, 0.5, 0.3, 0.1)
PROMPTS = ("a red apple", "a cat face on a green background", "a dog left of a car", "a violin")
W8A8, FP8 = Quantization("w8a8"), Quantization("fp8")


def step(
    network: Transformer, states: Tensor, mask: Tensor, latent: Tensor
) -> Callable[[], Tensor]:
    """A guided step at the middle of the way, its texts prepared."""
    prepared = [
        network.fold(network.prepare_text(states[row], mask[row]))
        for row in (slice(1, 2), slice(0, 1))
    ]
    velocities = [lambda x, t, text=text: network.velocity(x, t, text) for text in prepared]
    return lambda: guided_velocity(velocities, GUIDANCE)(latent, torch.tensor([500.0]))


def joined(network: Transformer, kernels: Path | None) -> Transformer:
    """A network in w8a8, placed as `Sana.load` does."""
    join_products(network, kernels)
    pack(network)
    return network


def compare(side: int, layers: int | None, repeats: int, *, quiet: bool) -> dict[str, float]:
    preset = transformer_preset(PRESETS[side]).to_dict()
    config = TransformerConfig.from_dict(preset | ({"num_layers": layers} if layers else {}))
    ours, theirs = pair(config)
    bare = Transformer(config).eval().requires_grad_(False)
    bare.load_state_dict(theirs.state_dict())
    quantize(bare, W8A8)
    states, mask = texts(config)
    latent = torch.randn(1, config.in_channels, side // 32, side // 32)
    both, timestep = torch.cat([latent, latent]), torch.tensor([500.0])

    def diffusers() -> Tensor:
        out = theirs(both, states, timestep.expand(2), encoder_attention_mask=mask.long())[0]
        without, given = out.chunk(2)
        return without + GUIDANCE * (given - without)

    with torch.inference_mode():
        networks = [ours, joined(copy.deepcopy(bare), None), joined(bare, cache_folder())]
        steps = [step(network, states, mask, latent) for network in networks]
        whole, plain, kernels, other = medians([*steps, diffusers], repeats, quiet=quiet)
        expected, found, compiled = (run() for run in steps)
    return {
        "float32_seconds": round(whole, 3),
        "w8a8_seconds": round(plain, 3),
        "w8a8_kernels_seconds": round(kernels, 3),
        "diffusers_seconds": round(other, 3),
        "w8a8_over_float32": round(whole / plain, 2),
        "kernels_over_float32": round(whole / kernels, 2),
        "kernels_over_diffusers": round(other / kernels, 2),
        "w8a8_error": round(relative(found, expected), 4),
        "kernels_error": round(relative(compiled, expected), 4),
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# ------------------------------------------------------------------ the trained model


@contextmanager
def kept(names: dict[str, str]) -> Any:
    """Other exceptions than the paper's."""
    with patch.object(quantization, "KEPT", names):
        yield


class Trajectories:
    """Latents of the trained model at five noise levels, and its velocities there in float32."""

    def __init__(self, sana: Sana) -> None:
        requests = [Request(text, seed=seed) for seed, text in enumerate(PROMPTS)]
        self.x0 = torch.cat([sana.draw_latents(request) for request in requests])
        self.states = [sana.text.encode([text]) for text in PROMPTS]
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(self.x0.shape, generator=generator)
        self.expected = self.velocities(sana.transformer)

    @torch.inference_mode()
    def velocities(self, network: Transformer) -> list[Tensor]:
        prepared = [network.fold(network.prepare_text(s.states, s.mask)) for s in self.states]
        found = []
        for sigma in SIGMAS:
            x = (1 - sigma) * self.x0 + sigma * self.noise
            timestep = torch.tensor([1000 * sigma])
            each = [network.velocity(x[i : i + 1], timestep, p) for i, p in enumerate(prepared)]
            found.append(torch.cat(each))
        return found

    def errors(self, network: Transformer) -> list[float]:
        """Relative, in percent, at each noise level."""
        pairs = zip(self.velocities(network), self.expected, strict=True)
        return [round(100 * relative(found, expected), 2) for found, expected in pairs]


def quality() -> dict[str, Any]:
    sana, part = Sana.load("emoji-256", device="cpu", dtype="float32"), locate("emoji-256")
    real = Trajectories(sana)

    def errors(scheme: Quantization, names: dict[str, str] = KEPT, *, twice: bool = True) -> Any:
        network = load_transformer(part).float()
        with kept(names), patch.object(quantization, "TWICE", "conv_point" if twice else ""):
            quantize(network, scheme)
        return real.errors(network)

    found: dict[str, Any] = {
        "w8a8": errors(W8A8),
        "w8a8, one 8-bit number behind the gate": errors(W8A8, twice=False),
        "fp8": errors(FP8),
        "w8": errors(Quantization("w8")),
        "w4, rank 32": errors(Quantization("w4", 32)),
        "w4, no branch": errors(Quantization("w4", 0)),
    }
    for name in KEPT:
        rest = {other: why for other, why in KEPT.items() if other != name}
        found[f"w8a8, {name} too"] = errors(W8A8, rest)
    for scheme in ("w8a8", "w8", "w4"):
        other = Sana.load("emoji-256", device="cpu", dtype="float32", quantize=scheme)
        found[f"{scheme}_psnr"] = psnrs(sana, other)
    network = load_transformer(part).float()  # fp8 is refused on a CPU, where it is emulated here
    quantize(network, FP8)
    found["fp8_psnr"] = psnrs(sana, replace(sana, transformer=network))
    return found


def psnrs(one: Sana, other: Sana) -> list[float]:
    return [round(psnr_of(one, other, prompt, seed), 1) for seed, prompt in enumerate(PROMPTS)]


def psnr_of(one: Sana, other: Sana, prompt: str, seed: int) -> float:
    pixels = []
    for sana in (one, other):
        [picture] = sana.generate(prompt, seed=seed)
        pixels.append(torch.from_numpy(np.asarray(picture.image.convert("RGB"))).float())
    return float(10 * torch.log10(255**2 / (pixels[0] - pixels[1]).square().mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantised transformers against float32.")
    parser.add_argument("--sides", type=int, nargs="*", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to be quick")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-quality", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="count only calls nobody disturbed")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for side in arguments.sides:
        results[str(side)] = compare(
            side, arguments.layers, arguments.repeats, quiet=arguments.quiet
        )
        print(side, results[str(side)], flush=True)
    if not arguments.no_quality:
        results["emoji-256"] = quality()
        for name, value in results["emoji-256"].items():
            print(f"{name:<44}", value, flush=True)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()

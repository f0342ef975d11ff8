"""Decoding with the DC-AE of sana-1.1 in 8 bits, and a whole picture of Sana-Sprint 0.6B.

    python -m benchmarks.quantized_decoder [--sides 512 1024] [--repeats 3] [--no-picture]

The same random float32 weights on each side. A picture is what Sprint does once its text of 30
tokens is read: 2 steps at 512 px and the decoding; ours with the transformer and the decoder as
`--quantize w8a8 --kernels` loads them. Sides alternate in one process; ratios are of medians. Last,
how near emoji-256's pictures in 8 bits are to those in float32. The last line is JSON.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from torch import Tensor

from benchmarks.decoding import PRESET
from benchmarks.quantized import joined
from benchmarks.timing import machine, medians
from benchmarks.transformer_step import PADDED, PROMPT
from opensana.autoencoder.model import Autoencoder
from opensana.drawing.decoding import decode_images
from opensana.files.user_cache import cache_folder
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.int8_decoder import quantize_decoder
from opensana.runtime.kernels import compile_convolutions
from opensana.runtime.placing import prepare_for_inference
from opensana.runtime.quantize import Quantization, quantize
from opensana.transformer.model import Transformer

SPRINT = "sprint_600m"
GUIDANCE, SIDE = 4.5, 512
SIGMAS = (1.0, 0.6)
CPU = torch.device("cpu")
PROMPTS = (
    "a red apple",
    "a cat face on a green background",
    "a yellow star on a purple background",
    "a dog left of a car",
    "a violin",
    "a house at night",
)


def autoencoders() -> tuple[dict[str, Autoencoder], AutoencoderDC]:
    """Ours in four ways, and diffusers'."""
    torch.manual_seed(0)
    config = autoencoder_preset(PRESET)
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    theirs = AutoencoderDC(**values).eval().requires_grad_(False)
    ours: dict[str, Autoencoder] = {}
    for name in ("float32", "float32_kernels", "int8", "int8_kernels"):
        with torch.device("meta"):
            ours[name] = Autoencoder(config).eval().requires_grad_(False)
        ours[name].load_state_dict(theirs.state_dict(), assign=True)
        kernels = cache_folder() if name.endswith("kernels") else None
        if name.startswith("int8") and (slower := quantize_decoder(ours[name], kernels)):
            raise SystemExit(slower)
        prepare_for_inference(ours[name], CPU, torch.float32)
        if kernels is not None:
            compile_convolutions(ours[name], kernels)
    return ours, theirs


@torch.inference_mode()
def decoding(
    ours: dict[str, Autoencoder], theirs: AutoencoderDC, side: int, repeats: int
) -> dict[str, float]:
    """Seconds, ratios and errors of a picture of `side` pixels a side."""
    first = ours["float32"]
    latent = torch.randn(1, first.latent_channels, side // 32, side // 32)
    unscaled = latent / first.config.scaling_factor
    calls: dict[str, Callable[[], Tensor]] = {
        name: partial(model.decode, latent) for name, model in ours.items()
    }
    calls["diffusers"] = lambda: theirs.decode(unscaled, return_dict=False)[0]
    seconds = dict(zip(calls, medians(list(calls.values()), repeats), strict=True))
    exact, found = calls["float32"](), calls["int8_kernels"]()
    return {
        **{f"{name}_seconds": round(value, 3) for name, value in seconds.items()},
        "int8_over_float32": round(seconds["float32"] / seconds["int8"], 2),
        "kernels_over_kernels": round(seconds["float32_kernels"] / seconds["int8_kernels"], 2),
        "kernels_over_diffusers": round(seconds["diffusers"] / seconds["int8_kernels"], 2),
        "error": round(float((found - exact).norm() / exact.norm()), 4),
    }


@torch.inference_mode()
def picture(autoencoder: Autoencoder, theirs: AutoencoderDC, repeats: int) -> dict[str, float]:
    """Seconds of a Sprint picture, and diffusers' over ours."""
    config = transformer_preset(SPRINT)
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    other = SanaTransformer2DModel(**values).eval().requires_grad_(False)
    plain = Transformer(config).eval().requires_grad_(False)
    plain.load_state_dict(other.state_dict())
    quantize(plain, Quantization("w8a8"))
    network = joined(plain, cache_folder())
    states = torch.randn(1, PADDED, config.caption_channels)
    mask = torch.zeros(1, PADDED, dtype=torch.bool)
    mask[:, :PROMPT] = True
    noise = torch.randn(1, config.in_channels, SIDE // 32, SIDE // 32)
    guidance = torch.tensor([GUIDANCE])

    def draw(velocity: Callable[[Tensor, Tensor], Tensor], decode: Callable[[Tensor], Any]) -> None:
        x = noise
        for sigma, after in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
            x = x + (after - sigma) * velocity(x, torch.tensor([sigma]))
        decode(x)

    def ours() -> None:
        text = network.prepare_text(states[:, :PROMPT], mask[:, :PROMPT])
        draw(lambda x, t: network.velocity(x, t, text, guidance=guidance), autoencoder.decode)

    def diffusers() -> None:
        embedded = guidance * config.guidance_embeds_scale
        draw(
            lambda x, t: other(x, states, t, guidance=embedded, encoder_attention_mask=mask.long())[
                0
            ],
            theirs.decode,
        )

    own, their = medians([ours, diffusers], repeats)
    return {
        "opensana_seconds": round(own, 3),
        "diffusers_seconds": round(their, 3),
        "ratio": round(their / own, 2),
    }


def quality() -> dict[str, float]:
    """PSNR of emoji-256's decoder in 8 bits, in decibels, over drawn latents."""
    plain = Sana.load("emoji-256", device="cpu", dtype="float32", kernels=True)
    latents = torch.cat([plain.draw_latents(Request(p, seed=i)) for i, p in enumerate(PROMPTS)])
    sides = []
    for scheme in (None, "w8a8"):
        sana = Sana.load("emoji-256", device="cpu", dtype="float32", kernels=True, quantize=scheme)
        images = decode_images(sana.autoencoder, latents, memory=None)
        sides.append([np.asarray(image, dtype=np.float64) for image in images])
    errors = [np.square(one - two).mean() for one, two in zip(*sides, strict=True)]
    values = [10 * np.log10(255**2 / error) for error in errors]
    return {"mean": round(statistics.mean(values), 1), "least": round(min(values), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoders in 8 bits.")
    parser.add_argument("--sides", type=int, nargs="*", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-picture", action="store_true")
    arguments = parser.parse_args()
    ours, theirs = autoencoders()
    results: dict[str, Any] = {}
    for side in arguments.sides:
        results[f"decode_{side}"] = decoding(ours, theirs, side, arguments.repeats)
        print(side, results[f"decode_{side}"], flush=True)
    if not arguments.no_picture:
        results["sprint_512"] = picture(ours["int8_kernels"], theirs, arguments.repeats)
        print("sprint", results["sprint_512"], flush=True)
    results["emoji_256_decibels"] = quality()
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()

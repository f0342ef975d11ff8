"""Decoding a latent with the DC-AE of sana-1.1: this project against diffusers.

    python -m benchmarks.decoding [--sides 512 1024] [--repeats 3]

The same random float32 weights on each side: opensana as it loads a model, opensana with compiled
kernels, diffusers. Decodings alternate in one process; ratios are diffusers' median over ours, and
errors the largest difference from diffusers over the largest value. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderDC  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from benchmarks.timing import machine, medians
from opensana.autoencoder import Autoencoder
from opensana.models.presets import autoencoder_preset
from opensana.runtime.kernels import compile_convolutions
from opensana.runtime.placing import prepare_for_inference

PRESET = "dc_ae_f32c32_sana_1_1"


def sides() -> tuple[dict[str, Autoencoder], AutoencoderDC]:
    """Ours, plain and compiled, and diffusers', with the same random weights."""
    torch.manual_seed(0)
    config = autoencoder_preset(PRESET)
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    theirs = AutoencoderDC(**values).eval().requires_grad_(False)
    ours = {}
    for name in ("plain", "kernels"):
        with torch.device("meta"):
            ours[name] = Autoencoder(config).eval().requires_grad_(False)
        ours[name].load_state_dict(theirs.state_dict(), assign=True)
        prepare_for_inference(ours[name], torch.device("cpu"), torch.float32)
    with TemporaryDirectory() as folder:
        compile_convolutions(ours["kernels"], Path(folder))
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding against diffusers.")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    ours, theirs = sides()
    results = {}
    for side in arguments.sides:
        results[side] = compared(ours, theirs, side, arguments.repeats)
        print(side, results[side], flush=True)
    print(json.dumps({"machine": machine(), "results": results}))


@torch.inference_mode()
def compared(
    ours: dict[str, Autoencoder], theirs: AutoencoderDC, side: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds, ratios and errors of a picture of `side` pixels a side."""
    first = next(iter(ours.values()))
    latent = torch.randn(1, first.latent_channels, side // 32, side // 32)
    unscaled = latent / first.config.scaling_factor
    made: dict[str, Tensor] = {}

    def call(name: str) -> Callable[[], None]:
        if name == "diffusers":
            return lambda: made.update({name: theirs.decode(unscaled, return_dict=False)[0]})
        return lambda: made.update({name: ours[name].decode(latent)})

    names = ["diffusers", *ours]
    seconds = dict(zip(names, medians([call(name) for name in names], repeats), strict=True))
    found = {"diffusers": {"seconds": round(seconds["diffusers"], 3)}}
    expected = made["diffusers"]
    for name in ours:
        difference = (made[name] - expected).abs().max() / expected.abs().max()
        ratio = round(seconds["diffusers"] / seconds[name], 3)
        found[name] = {
            "seconds": round(seconds[name], 3),
            "ratio": ratio,
            "error": float(difference),
        }
    return found


if __name__ == "__main__":
    main()

"""Decoding a latent with the DC-AE of sana-1.1: this project against diffusers.

    python -m benchmarks.decoding [--sides 512 1024] [--repeats 3]

The same random float32 weights on both sides; decodings alternate in one process and the ratio is
that of medians. The last line is JSON.
"""

import argparse
import json

import torch
from diffusers import AutoencoderDC  # pyright: ignore[reportPrivateImportUsage]

from benchmarks.timing import machine, medians
from opensana.autoencoder import Autoencoder
from opensana.presets import autoencoder_preset

PRESET = "dc_ae_f32c32_sana_1_1"


def pair() -> tuple[Autoencoder, AutoencoderDC]:
    """The same random weights on both sides."""
    torch.manual_seed(0)
    config = autoencoder_preset(PRESET)
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    theirs = AutoencoderDC(**values).eval().requires_grad_(False)
    ours = Autoencoder(config).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def main() -> None:
    parser = argparse.ArgumentParser(description="Decoding against diffusers.")
    parser.add_argument("--sides", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    ours, theirs = pair()
    scale, results = ours.config.scaling_factor, {}
    for side in arguments.sides:
        latent = torch.randn(1, ours.latent_channels, side // 32, side // 32)
        with torch.inference_mode():
            first, second = ours.decode(latent), theirs.decode(latent / scale, return_dict=False)[0]
            error = float((first - second).abs().max() / second.abs().max())
            mine, other = medians(
                [lambda x=latent: ours.decode(x), lambda x=latent: theirs.decode(x / scale)],
                arguments.repeats,
            )
        results[side] = {
            "ratio": round(other / mine, 3),
            "opensana_seconds": round(mine, 3),
            "diffusers_seconds": round(other, 3),
            "relative_error": error,
        }
        print(side, results[side], flush=True)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()

"""Peak memory, time and error of decoding a large picture: whole, in bands, and in blended tiles.

    python -m benchmarks.decode_memory --size 4096 --memory 3GiB [--ways bands tiles] [--kernels]

Each way is a new process with the same random weights and latent. `whole` is the plain forward,
`bands` opensana's decode in bands within --memory beside the weights, its layers as a loaded model
has them, `tiles` the decode of diffusers' AutoencoderDC with `enable_tiling`. Errors are the
largest, over the scale of the picture, against the first way. Resident memory counts everything:
Python, torch, weights (float32) and picture. The last line is JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import machine
from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.autoencoder.model import Decoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.streaming import decode_bands
from opensana.device import format_bytes, parse_bytes
from opensana.files.user_cache import cache_folder
from opensana.runtime.kernels import compile_convolutions
from opensana.runtime.placing import prepare_for_inference

SMALL_WIDTHS = (16, 32, 64, 64, 128, 128)
PRESETS = {
    "sana-1.1": AutoencoderConfig(),
    "lite": AutoencoderConfig(
        decoder_block_types=("ResBlock",) * 6,
        decoder_layers_per_block=(0, 3, 5, 4, 4, 4),
        upsample_block_type="pixel_shuffle",
        decoder_conv_act_fn="silu",
    ),
    "small": AutoencoderConfig(
        encoder_block_out_channels=SMALL_WIDTHS, decoder_block_out_channels=SMALL_WIDTHS
    ),
}


def random_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Random weights in the decoder; the encoder takes no memory."""
    with torch.device("meta"):
        model = Autoencoder(config)
    torch.manual_seed(0)
    model.decoder = Decoder(config)
    return model.eval().requires_grad_(False)


def whole(model: Autoencoder, latent: Tensor, _: argparse.Namespace) -> Iterator[Tensor]:
    return map(model.decode, [latent])


def bands(model: Autoencoder, latent: Tensor, options: argparse.Namespace) -> Iterator[Tensor]:
    return decode_bands(model, latent, memory=parse_bytes(options.memory))


def tiles(model: Autoencoder, latent: Tensor, options: argparse.Namespace) -> Iterator[Tensor]:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    values = {k: v for k, v in model.config.to_dict().items() if k != "_class_name"}
    with torch.device("meta"):
        reference = AutoencoderDC(**values).eval()
    reference.decoder.load_state_dict(model.decoder.state_dict(), assign=True)
    stride = options.tile * 7 // 8
    reference.enable_tiling(options.tile, options.tile, stride, stride)
    unscaled = latent / model.config.scaling_factor
    return (reference.decode(one, return_dict=False)[0] for one in [unscaled])


WAYS = {"whole": whole, "bands": bands, "tiles": tiles}


@torch.inference_mode()
def decode_here(way: str, file: Path, options: argparse.Namespace) -> dict[str, float]:
    """Decode in this process, rows [3, W] one after another into a file; seconds and bytes."""
    model = random_autoencoder(PRESETS[options.preset])
    if way == "bands":
        prepare_for_inference(model.decoder, torch.device("cpu"), torch.float32)
        if options.kernels:
            compile_convolutions(model.decoder, cache_folder())
    side = options.size // model.compression
    latent = torch.randn(1, model.latent_channels, side, side)
    decoded = WAYS[way](model, latent, options)
    before, start = peak_memory(), time.monotonic()
    write_rows(decoded, file)
    return {"seconds": time.monotonic() - start, "before": before, "peak": peak_memory()}


def write_rows(pixels: Iterable[Tensor], file: Path) -> None:
    with file.open("wb") as out:
        for band in pixels:
            for rows in band[0].transpose(0, 1).split(64):
                out.write(rows.contiguous().numpy().tobytes())


def peak_memory() -> int:
    """The most bytes that were ever resident in this process."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the parent's too
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def decode_elsewhere(way: str, file: Path) -> dict[str, float]:
    """`decode_here` in a new process with this one's options."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.decode_memory",
        *sys.argv[1:],
        "--here",
        way,
        str(file),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def error(file: Path, expected: Path) -> float:
    """The largest difference over the largest value."""
    ours, theirs = (np.memmap(path, np.float32, "r") for path in (file, expected))
    steps = range(0, len(theirs), 2**22)
    difference = max(
        float(np.abs(ours[i : i + 2**22] - theirs[i : i + 2**22]).max()) for i in steps
    )
    return difference / max(float(np.abs(theirs[i : i + 2**22]).max()) for i in steps)


def planned(options: argparse.Namespace) -> dict[str, Any]:
    with torch.device("meta"):
        model = Autoencoder(PRESETS[options.preset])
    side = options.size // model.compression
    chain = decoder_chain(model, 1, side, side)
    plan = chain.plan(parse_bytes(options.memory))
    return {
        "least": chain.least_memory,
        "whole": chain.one_band_memory,
        "bands": plan.memory,
        "rows": plan.rows[-1],
    }


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Memory, time and error of three ways to decode.")
    parser.add_argument("--preset", choices=PRESETS, default="sana-1.1")
    parser.add_argument("--size", type=int, default=1024, help="pixels a side")
    parser.add_argument("--memory", default="1GiB", help="of bands, beside the weights")
    parser.add_argument("--tile", type=int, default=512, help="pixels a side; overlap an eighth")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--kernels", action="store_true", help="bands with the C++ convolution")
    parser.add_argument("--here", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = read_options()
    if options.here:
        way, file = options.here
        print(json.dumps(decode_here(way, Path(file), options)))
        return
    figures: dict[str, Any] = {"preset": options.preset, "size": options.size}
    figures["planned"] = planned(options)
    with tempfile.TemporaryDirectory() as name:
        files = {way: Path(name) / way for way in options.ways}
        for way, file in files.items():
            figures[way] = decode_elsewhere(way, file)
            figures[way]["error"] = error(file, files[options.ways[0]])
            found = figures[way]
            print(
                f"{way}: {found['seconds']:.1f} s, {format_bytes(found['peak'])} resident "
                f"({format_bytes(found['before'])} before), error {found['error']:.1e}"
            )
    print(json.dumps({"machine": machine(), "results": figures}))


if __name__ == "__main__":
    main()

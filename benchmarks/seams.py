"""What blended tiles do to a picture, and bands do not: the autoencoder of emoji-256.

    python -m benchmarks.seams [--side 1024] [--tile 256] [--picture FILE.png]

A sheet of one colour gradient and shapes is encoded, and decoded whole, in bands of least memory,
and in the blended tiles of diffusers' AutoencoderDC. Errors are the largest and the mean, pixels in
-1..1, against the whole decode. The picture shows whole, tiles, and their difference, ten times
enlarged. The last line is JSON.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.timing import machine
from opensana.autoencoder import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.streaming import decode
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import to_images

WEIGHTS = "emoji-256"


def sheet(side: int) -> Tensor:
    """A gradient with discs over it, [1, 3, side, side] in -1..1."""
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    pen = ImageDraw.Draw(image)
    colours = ("#d63939", "#f08c32", "#fad148", "#46a456", "#3a72d6")
    for index in range(25):
        y, x = divmod(index, 5)
        place = [side * (2 * k + 1) / 10 for k in (x, y)]
        corners = [*(k - side / 14 for k in place), *(k + side / 14 for k in place)]
        pen.ellipse(corners, fill=colours[(x + y) % 5])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def tiled(model: Autoencoder, latent: Tensor, tile: int) -> Tensor:
    values = {k: v for k, v in model.config.to_dict().items() if k != "_class_name"}
    theirs = AutoencoderDC(**values).eval()
    theirs.load_state_dict(model.state_dict())
    theirs.enable_tiling(tile, tile, tile * 7 // 8, tile * 7 // 8)
    return theirs.decode(latent / model.config.scaling_factor, return_dict=False)[0]


def strip(whole: Tensor, tiles: Tensor) -> Image.Image:
    """Whole, tiles and ten times their difference, side by side."""
    difference = (tiles - whole).abs() * 10 - 1
    return to_images(torch.cat([whole, tiles, difference], dim=3).clamp(-1, 1))[0]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Blended tiles and bands against one decode.")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    model = load_autoencoder(find_autoencoder(WEIGHTS)).float().eval()
    latent = model.encode(sheet(options.side))
    chain = decoder_chain(model, 1, *latent.shape[2:])
    whole = model.decode(latent)
    results = {}
    tiles = tiled(model, latent, options.tile)
    for name, pixels in (
        ("bands", decode(model, latent, memory=chain.least_memory)),
        ("tiles", tiles),
    ):
        error = (pixels - whole).abs()
        results[name] = {"largest": float(error.max()), "mean": float(error.mean())}
        print(name, results[name])
    if options.picture is not None:
        strip(whole, tiles).save(options.picture)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()

"""How a picture becomes Inception's input: the two ways in which published FIDs were made.

    sana    shorter side to the drawn size, centre crop, then bilinear to 299 without antialiasing:
            the official code of Sana, on top of pytorch-fid
    clean   the whole picture to 299 x 299, bicubic with antialiasing, in floating point: clean-fid

The same pictures have a FID that is several times larger in the second one. So figures are printed
with the protocol's name, and compare only within it.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from opensana.metrics.inception import SIZE

ProtocolName = Literal["sana", "clean"]
Prepare = Callable[[np.ndarray, int], Tensor]
"""A picture uint8 [H, W, 3] and the drawn size to Inception's input [3, 299, 299] in -1..1."""


def sana(picture: np.ndarray, size: int) -> Tensor:
    image = Image.fromarray(picture)
    short, long = sorted(image.size)
    if short != size:
        scaled = int(size * long / short)
        wide = image.width > image.height
        sides = (scaled, size) if wide else (size, scaled)
        image = image.resize(sides, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2.0) for side in image.size)
    image = image.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    small = functional.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=False)
    return 2 * small[0] - 1


def clean(picture: np.ndarray, _size: int) -> Tensor:
    channels = []
    for channel in range(3):
        levels = Image.fromarray(picture[..., channel].astype(np.float32))
        small = levels.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        channels.append(np.asarray(small).clip(0, 255))
    return (torch.from_numpy(np.stack(channels)) - 128) / 128


PROTOCOLS: dict[str, Prepare] = {"sana": sana, "clean": clean}


def described(protocol: str, size: int) -> str:
    if protocol == "sana":
        return f"sana: shorter side to {size}, centre crop, bilinear to 299 (pytorch-fid)"
    return "clean: the whole picture bicubic to 299 (clean-fid)"

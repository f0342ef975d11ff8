"""Scaling and cutting pictures: the filters differ with a reason each, and stay apart.

Drawn pictures are brought to a size as the reference does, bilinear; what a user gives, by Lanczos;
what is trained on, bicubic up to 2K as published, with antialiasing, and by Lanczos from there.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F


def cover(pixels: Tensor, width: int, height: int) -> Tensor:
    """Pixels [B, 3, H, W] scaled (bilinear) until they cover the size, then cut to its centre."""
    old_height, old_width = pixels.shape[-2:]
    if (old_width, old_height) == (width, height):
        return pixels
    scale = max(height / old_height, width / old_width)
    # A product just below a whole number would leave the picture one pixel short of the size.
    scaled = max(int(old_height * scale), height), max(int(old_width * scale), width)
    pixels = F.interpolate(pixels, size=scaled, mode="bilinear", align_corners=False)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return pixels[..., top : top + height, left : left + width]


def covering(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture scaled by Lanczos until it covers the size, then cut to it about its centre."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def lanczos(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3] scaled to a size by Pillow."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def bicubic(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3] scaled by torch: at most 2 of 255 levels from Pillow's, twice as fast."""
    writable = np.require(pixels, requirements="W")  # torch warns of others
    channels_last = torch.from_numpy(writable).permute(2, 0, 1)[None]
    scaled = F.interpolate(channels_last, (height, width), mode="bicubic", antialias=True)
    return scaled[0].permute(1, 2, 0).numpy()

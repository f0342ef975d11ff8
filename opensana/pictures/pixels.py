"""8-bit RGB images to pixels [B, 3, H, W] in -1..1, as the autoencoder takes them, and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensana.errors import NumericsError


def from_levels(levels: np.ndarray) -> Tensor:
    """Bytes 0..255 as float32 pixels in -1..1, of the same shape."""
    return torch.from_numpy(levels).float().div_(127.5).sub_(1)


def to_pixels(image: Image.Image) -> Tensor:
    """One image as float32 pixels [1, 3, H, W] in -1..1."""
    return from_levels(np.array(image)).permute(2, 0, 1)[None]


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in -1..1 to 8-bit images; NaN is an error, never a black picture."""
    return [to_image(levels) for levels in to_levels(pixels)]


def to_levels(pixels: Tensor) -> Tensor:
    """Pixels in -1..1 to bytes 0..255 of the same shape; NaN is an error."""
    pixels = pixels.float()
    if not torch.isfinite(pixels).all():
        raise NumericsError(
            "the decoded picture holds NaN or infinite values; try --dtype float32 "
            "(the autoencoder does not work in float16)"
        )
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def to_image(levels: Tensor) -> Image.Image:
    """Bytes [3, H, W] as an RGB image."""
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())

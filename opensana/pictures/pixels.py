"""8-bit RGB images to pixels [B, 3, H, W] in -1..1, as the autoencoder takes them, and back."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensana.device import sent, to_host
from opensana.errors import NumericsError

CPU = torch.device("cpu")


def from_levels(levels: np.ndarray, device: torch.device = CPU) -> Tensor:
    """Bytes 0..255 as float32 pixels in -1..1, of the same shape, on a device: bytes travel."""
    return sent(torch.from_numpy(levels), device).float().div_(127.5).sub_(1)


def to_pixels(image: Image.Image) -> Tensor:
    """One image as float32 pixels [1, 3, H, W] in -1..1."""
    return from_levels(np.array(image)).permute(2, 0, 1)[None]


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in -1..1 to 8-bit images; NaN is an error, never a black picture."""
    return joined([pixels])


def joined(bands: Iterable[Tensor]) -> list[Image.Image]:
    """As `to_images`, of pixels in bands [B, 3, n, W] from top to bottom.

    A band is kept in bytes, a quarter of its numbers. On an accelerator nothing is waited for until
    all are done.
    """
    largest, levels = zip(*map(to_levels, bands), strict=True)
    if len(levels) == 1:
        largest, whole = to_host(largest[0], levels[0])
    else:
        largest, whole = to_host(torch.stack(largest), torch.cat(levels, dim=1))
    if not torch.isfinite(largest).all():
        raise NumericsError(
            "the decoded picture holds NaN or infinite values; try --dtype float32 "
            "(the autoencoder does not work in float16)"
        )
    return [Image.fromarray(one.numpy()) for one in whole]


def to_levels(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of pixels [B, 3, H, W], and all as bytes 0..255 [B, H, W, 3]; of NaN as any."""
    tokens = pixels.permute(0, 2, 3, 1)
    if pixels.device.type == "cpu":
        levels = (tokens.float() / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.abs().max(), levels.contiguous()
    # Five kernels in all. Bytes are cut off, so that a half more rounds them.
    half = pixels.new_full((1,), 128.0, dtype=torch.float32)
    levels = torch.add(half, tokens, alpha=127.5).clamp_(0, 255)
    levels = levels.to(torch.uint8, memory_format=torch.contiguous_format)
    return torch.linalg.vector_norm(pixels, torch.inf), levels

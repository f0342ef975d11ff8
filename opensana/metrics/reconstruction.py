"""How much of a picture an autoencoder gives back: PSNR and SSIM (Wang et al. 2004)."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from opensana.autoencoder.model import Autoencoder
from opensana.errors import NumericsError
from opensana.pictures.pixels import from_levels


def psnr(output: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels of each picture [B]; the peak-to-peak range is 2."""
    error = (output.clamp(-1, 1) - pixels).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


Reconstruct = Callable[[Tensor], Tensor]
"""Pixels [B, 3, H, W] in -1..1 to their reconstruction."""

WINDOW, DEVIATION = 11, 1.5
SMALLEST_ERROR = 1e-10


@dataclass(frozen=True)
class Reconstruction:
    """Figures over some pictures, decibels for both PSNR."""

    pictures: int
    psnr: float
    """The mean of the pictures' own PSNR."""
    psnr_of_mean_error: float
    """The PSNR of the mean squared error over all pictures; hard pictures weigh more."""
    ssim: float


@torch.inference_mode()
def pair(reconstruct: Reconstruct, batch: np.ndarray) -> tuple[Tensor, Tensor]:
    """Bytes [B, H, W, 3] as originals and reconstructions, [B, 3, H, W] in 0..1.

    Both are as 8 bits would hold them.
    """
    pixels = from_levels(batch).permute(0, 3, 1, 2)
    output = reconstruct(pixels)
    if not torch.isfinite(output).all():
        raise NumericsError("a reconstruction holds NaN or infinite values")
    return pixels / 2 + 0.5, (output.float().clamp(-1, 1) / 2 + 0.5).mul(255).round() / 255


def pairs(
    reconstruct: Reconstruct, batches: Iterable[np.ndarray]
) -> Iterator[tuple[Tensor, Tensor]]:
    """`pair` of each batch."""
    return (pair(reconstruct, batch) for batch in batches)


class Tally:
    """Squared errors and similarities of the pictures so far."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.similarities: list[float] = []

    def add(self, first: Tensor, second: Tensor) -> None:
        """Pictures [B, C, H, W] in 0..1."""
        self.errors += (first - second).square().flatten(1).mean(1).tolist()
        self.similarities += ssim(first, second).tolist()

    def figures(self) -> Reconstruction:
        return Reconstruction(
            pictures=len(self.errors),
            psnr=float(np.mean([decibels(error) for error in self.errors])),
            psnr_of_mean_error=decibels(float(np.mean(self.errors))),
            ssim=float(np.mean(self.similarities)),
        )


def decibels(error: float) -> float:
    """PSNR of a mean squared error, for a peak of 1; at most 100 dB."""
    return -10 * math.log10(max(error, SMALLEST_ERROR))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity [B] of pictures [B, C, H, W] in 0..1 (Wang et al. 2004, equation 13).

    A Gaussian window of 11 x 11 and deviation 1.5 without padding; the mean over positions
    and channels.
    """
    c1, c2 = 0.01**2, 0.03**2
    stack = torch.cat([first, second, first * first, second * second, first * second])
    mean1, mean2, square1, square2, product = _blur(stack).chunk(5)
    variance1, variance2 = square1 - mean1**2, square2 - mean2**2
    covariance = product - mean1 * mean2
    luminance = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (luminance * contrast_structure).flatten(1).mean(1)


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian windows, rows and then columns, without padding."""
    offset = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    weight = torch.exp(-offset.square() / (2 * DEVIATION**2))
    weight = weight / weight.sum()
    channels = pictures.shape[1]
    kernel = weight.expand(channels, 1, 1, WINDOW)
    rows = functional.conv2d(pictures, kernel, groups=channels)
    return functional.conv2d(rows, kernel.transpose(2, 3), groups=channels)


def through(autoencoder: Autoencoder) -> Reconstruct:
    """Encode and decode, in the autoencoder's own dtype and on its device."""
    weight = next(autoencoder.parameters())

    def reconstruct(pixels: Tensor) -> Tensor:
        moved = pixels.to(weight.device, weight.dtype)
        return autoencoder.decode(autoencoder.encode(moved)).float().cpu()

    return reconstruct

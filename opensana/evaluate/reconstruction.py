"""How well an autoencoder gives pictures back: PSNR and SSIM (paper 2.1, table 2).

Pixels are in 0..1 for the measures, the peak is 1. B batch, C channels, H W size.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from opensana.autoencoder.model import Autoencoder
from opensana.data.emoji.compose import Scene, compose_batch
from opensana.data.emoji.dataset import EmojiData, Record, Split
from opensana.errors import NumericsError
from opensana.pictures.pixels import from_levels

Reconstruct = Callable[[Tensor], Tensor]
"""Pixels [B, 3, H, W] in -1..1 to their reconstruction."""

TRAIN_SAMPLE = 256
BATCH = 8
PATCH = 32
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


def evaluate_reconstruction(
    reconstruct: Reconstruct, data: EmojiData, *, split: Split, everything: bool = False
) -> Reconstruction:
    """Measure on a split, on white at 256 pixels: all held-out pictures, or 256 of the others."""
    return measure(reconstruct, white_batches(data, chosen(data, split, everything=everything)))


def chosen(data: EmojiData, split: Split, *, everything: bool = False) -> list[Record]:
    """The pictures of a split to measure on, the same each time."""
    records = data.split(split)
    return records if everything or split == "held_out" else draw(records, TRAIN_SAMPLE)


def draw(records: Sequence[Record], count: int) -> list[Record]:
    """`count` records in the order of a hash: the same whatever else the set holds."""
    ordered = sorted(records, key=lambda r: hashlib.sha256(f"draw/{r.hexcode}".encode()).digest())
    return ordered[:count]


def white_batches(data: EmojiData, records: Sequence[Record]) -> Iterator[np.ndarray]:
    """The pictures on white, uint8 [B, 256, 256, 3]."""
    for start in range(0, len(records), BATCH):
        scenes = [Scene(emoji=(record.index,)) for record in records[start : start + BATCH]]
        yield compose_batch(scenes, data.pictures)


def measure(reconstruct: Reconstruct, batches: Iterable[np.ndarray]) -> Reconstruction:
    """Figures over batches of uint8 pictures [B, H, W, 3]."""
    tally = Tally()
    for first, second in pairs(reconstruct, batches):
        tally.add(first, second)
    return tally.figures()


@torch.inference_mode()
def pairs(
    reconstruct: Reconstruct, batches: Iterable[np.ndarray]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Originals and what became of them, [B, 3, H, W] in 0..1, both as 8 bits would hold them."""
    for batch in batches:
        pixels = from_levels(batch).permute(0, 3, 1, 2)
        output = reconstruct(pixels)
        if not torch.isfinite(output).all():
            raise NumericsError("a reconstruction holds NaN or infinite values")
        yield pixels / 2 + 0.5, (output.float().clamp(-1, 1) / 2 + 0.5).mul(255).round() / 255


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
    """Structural similarity [B] of pictures [B, C, H, W] in 0..1 (Wang et al. 2004).

    A Gaussian window of 11 x 11 and deviation 1.5; positions where it leaves the picture are left
    out; the mean over positions and channels.
    """
    c1, c2 = 0.01**2, 0.03**2
    stack = torch.cat([first, second, first * first, second * second, first * second])
    mean1, mean2, square1, square2, product = _blur(stack).chunk(5)
    variance1, variance2 = square1 - mean1**2, square2 - mean2**2
    covariance = product - mean1 * mean2
    light = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    structure = (2 * covariance + c2) / (variance1 + variance2 + c2)
    return (light * structure).flatten(1).mean(1)


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian windows, rows and then columns, without padding."""
    place = torch.arange(WINDOW, dtype=pictures.dtype, device=pictures.device) - WINDOW // 2
    weight = torch.exp(-place.square() / (2 * DEVIATION**2))
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


# ------------------------------------------------------------------ the linear reference


def linear_reference(
    data: EmojiData, *, numbers: int = 32, pictures: int | None = None
) -> Reconstruct:
    """The best linear code of 32 x 32 patches to `numbers` numbers, fit on training pictures.

    An autoencoder of 32 x 32 patches must beat it clearly. It is fit on all training pictures if
    `pictures` is None.
    """
    records = data.split("train") if pictures is None else draw(data.split("train"), pictures)
    mean, basis = principal_components(white_batches(data, records), numbers)

    def reconstruct(pixels: Tensor) -> Tensor:
        patches = to_patches(pixels) - mean
        return from_patches(patches @ basis @ basis.T + mean, pixels.shape)

    return reconstruct


@torch.inference_mode()
def principal_components(batches: Iterable[np.ndarray], numbers: int) -> tuple[Tensor, Tensor]:
    """Mean [P] and orthonormal basis [P, numbers] of the patches of uint8 pictures."""
    size = 3 * PATCH * PATCH
    moment, total, count = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size), 0
    for batch in batches:
        pixels = from_levels(batch).permute(0, 3, 1, 2)
        patches = to_patches(pixels).flatten(0, 1)
        moment += patches.T @ patches
        total += patches.sum(0)
        count += len(patches)
    mean = total / count
    covariance = (moment / count - torch.outer(mean.double(), mean.double())).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        basis, _, _ = torch.svd_lowrank(covariance, q=min(2 * numbers, size), niter=8)
    return mean, basis[:, :numbers]


def to_patches(pixels: Tensor) -> Tensor:
    """Pixels [B, 3, H, W] to flat patches [B, N, P]."""
    return functional.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2)


def from_patches(patches: Tensor, shape: Sequence[int]) -> Tensor:
    return functional.fold(patches.transpose(1, 2), tuple(shape[2:]), PATCH, stride=PATCH)

"""How well an autoencoder gives pictures back: PSNR and SSIM (paper 2.1, table 2).

Pixels are in 0..1 for the measures, the peak is 1. B batch, C channels, H W size.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from opensana.autoencoder.model import Autoencoder
from opensana.datasets.emoji.compose import Scene, compose_batch
from opensana.datasets.emoji.dataset import EmojiData, Record, Split
from opensana.metrics.reconstruction import Reconstruct, Reconstruction, Tally, pairs
from opensana.pictures.pixels import from_levels, to_images

TRAIN_SAMPLE = 256
BATCH = 8
PATCH = 32


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
def round_trip(model: Autoencoder, pictures: Sequence[np.ndarray]) -> list[Image.Image]:
    """Pictures [H, W, 3] as the autoencoder gives them back."""
    given: list[Image.Image] = []
    for first in range(0, len(pictures), BATCH):
        pixels = from_levels(np.stack(pictures[first : first + BATCH])).permute(0, 3, 1, 2)
        given += to_images(model.decode(model.encode(pixels)))
    return given


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

"""Previews of an autoencoder: fitted to pictures, measured on others."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from opensana.autoencoder.preview import Preview, PreviewFit, small
from opensana.datasets.crops import PictureSource
from opensana.device import resolve_device
from opensana.errors import DataError, RequestError
from opensana.evaluate.sample import choose
from opensana.metrics.reconstruction import decibels
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import from_levels
from opensana.runtime.placing import place
from opensana.workers.progress import progress

MEASURED = 10
"""One picture in so many is not fitted to."""
LEAST = 2 * MEASURED


@dataclass(frozen=True)
class Fitted:
    """A map, to how many pictures it was fitted, and how near it is to the others."""

    preview: Preview
    fitted: int
    measured: int
    decibels: float


@torch.inference_mode()
def fit_preview(
    model: str,
    pictures: str | Path,
    *,
    split: str = "train",
    size: int = 512,
    limit: int = 1000,
    batch: int = 4,
    device: str = "auto",
) -> Fitted:
    """The previews of a model's autoencoder, from pictures cut to squares of `size` pixels."""
    source = PictureSource.open(pictures, split=split)
    sample = choose(source, limit, size=size, batch=batch)
    if len(sample) < LEAST:
        raise DataError(f"previews are fitted to {LEAST} pictures or more, got {len(sample)}")
    autoencoder = load_autoencoder(find_autoencoder(model))
    if size % autoencoder.compression:
        raise RequestError(f"size must be a multiple of {autoencoder.compression}, got {size}")
    place(autoencoder, resolve_device(device), torch.float32)
    fit, kept = PreviewFit(autoencoder.config.latent_channels), []
    report, seen = progress("pictures encoded"), 0
    for levels in sample:
        pixels = from_levels(levels).permute(0, 3, 1, 2)
        latents = autoencoder.encode(pixels.to(autoencoder.device)).cpu()
        measuring = np.arange(seen, seen + len(pixels)) % MEASURED == 0
        kept.append((latents[measuring], small(pixels, latents, fit.pixels)[measuring]))
        fit.add(latents[~measuring], pixels[~measuring])
        seen += len(pixels)
        report(seen, len(sample))
    preview = fit.solve()
    latents, wanted = (torch.cat(parts) for parts in zip(*kept, strict=True))
    error = float((preview(latents) - wanted).square().mean()) / 4  # of pixels in 0..1
    return Fitted(preview, seen - len(latents), len(latents), decibels(error))

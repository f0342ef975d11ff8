"""Reconstruction metrics of autoencoders on the user's own pictures (paper 2.1).

Pictures are center-cropped to squares and resized to one size. H W size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensana.autoencoder.model import Autoencoder
from opensana.datasets.crops import PictureSource
from opensana.device import resolve_device, resolve_dtype
from opensana.errors import ConfigError, DataError, RequestError
from opensana.metrics.frechet import Extract, Moments, clip_features, frechet_distance
from opensana.metrics.lpips import SMALLEST_SIDE, Lpips, load_lpips
from opensana.metrics.reconstruction import Tally, decibels, pairs, through
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import to_images
from opensana.pictures.sheet import contact_sheet
from opensana.runtime.placing import part_dtype, place
from opensana.workers.progress import progress

SHOWN = 8


@dataclass(frozen=True)
class Judges:
    """Optional networks for LPIPS and the Fréchet distance; the user provides the weights."""

    lpips: Lpips | None = None
    features: Extract | None = None


@dataclass(frozen=True)
class Sample:
    """Some pictures of a source, at one size."""

    source: PictureSource
    indices: list[int]
    size: int
    batch: int

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [B, size, size, 3] each."""
        for start in range(0, len(self.indices), self.batch):
            part = self.indices[start : start + self.batch]
            yield np.stack([self.source.square(index, self.size) for index in part])


def evaluate_pictures(
    models: Sequence[str],
    pictures: str | Path,
    *,
    split: str = "train",
    size: int = 512,
    limit: int = 1000,
    lpips: str | Path | None = None,
    clip: str | Path | None = None,
    grid: str | Path | None = None,
    batch: int = 4,
    device: str = "auto",
    dtype: str | None = None,
) -> dict[str, Any]:
    """The metrics of each autoencoder on at most `limit` pictures, evenly spaced.

    `lpips` and `clip` are paths of weights; without them these metrics are left out. `grid` is a
    PNG to write, of originals and reconstructions. A model is built-in, a folder or a hub id.
    """
    if len(set(models)) < len(models):
        raise ConfigError(f"the two models are the same, {models[0]!r}; name another one")
    if min(batch, limit) < 1:
        raise RequestError(f"batch and limit must be 1 or more, got {batch} and {limit}")
    where = resolve_device(device)
    sample = choose(PictureSource.open(pictures, split=split), limit, size=size, batch=batch)
    autoencoders = {name: _load(name, where, dtype, size) for name in models}
    judges = Judges(
        None if lpips is None else load_lpips(lpips).to(where),
        None if clip is None else clip_features(clip, where),
    )
    figures: dict[str, Any] = {}
    columns: list[list[Shown]] = []
    for name, autoencoder in autoencoders.items():
        figures[name], shown = examine(name, autoencoder, sample, judges)
        columns.append(shown)
    if grid is not None:
        save_columns(grid, columns, size)
    described: dict[str, Any] = {"pictures": len(sample.indices), "size": size}
    if clip is not None:
        described["frechet_features"] = f"CLIP, {clip}: not comparable with an Inception FID"
    return described | {"models": figures}


def choose(source: PictureSource, limit: int, *, size: int, batch: int) -> Sample:
    """At most `limit` pictures, evenly spaced."""
    if not len(source):
        raise DataError("there are no pictures in this split; try --split train")
    spread = np.linspace(0, len(source) - 1, min(limit, len(source))).astype(int).tolist()
    return Sample(source, spread, size, batch)


@dataclass(frozen=True)
class Shown:
    """A picture, its reconstruction, and its caption on the sheet."""

    original: Tensor
    made: Tensor
    caption: str


def examine(
    name: str, autoencoder: Autoencoder, sample: Sample, judges: Judges
) -> tuple[dict[str, float], list[Shown]]:
    """The metrics of one autoencoder, and a few of its pictures [3, H, W] in 0..1."""
    tally, distances, shown = Tally(), [], []
    before, after = Moments(), Moments()
    report, total = progress(f"pictures through {name}"), len(sample.indices)
    wanted = set(np.linspace(0, total - 1, min(SHOWN, total)).astype(int).tolist())
    for first, second in pairs(through(autoencoder), sample):
        start = len(tally.errors)
        tally.add(first, second)
        if judges.lpips is not None:
            target = judges.lpips.heads[0].device
            with torch.inference_mode():
                found = judges.lpips(first.to(target) * 2 - 1, second.to(target) * 2 - 1)
            distances += found.tolist()
        if judges.features is not None:
            before.add(judges.features(first))
            after.add(judges.features(second))
        for row in range(len(first)):
            if start + row in wanted:
                caption = f"{name}, {decibels(tally.errors[start + row]):.2f} dB"
                shown.append(Shown(first[row], second[row], caption))
        report(len(tally.errors), total)
    figures = asdict(tally.figures())
    del figures["pictures"]
    if judges.lpips is not None:
        figures["lpips_vgg"] = float(np.mean(distances))
    if judges.features is not None:
        figures["frechet_clip"] = frechet_distance(before, after)
    return figures, shown


def save_columns(path: str | Path, columns: Sequence[Sequence[Shown]], size: int) -> None:
    """Save a PNG with one row per picture: the original, then each model's reconstruction."""
    pictures: list[Image.Image] = []
    names: list[str] = []
    for row in zip(*columns, strict=True):
        parts = torch.stack([row[0].original, *(column.made for column in row)])
        pictures += to_images(parts * 2 - 1)
        names += ["original", *(column.caption for column in row)]
    sheet = contact_sheet(pictures, names, columns=len(columns) + 1, side=size)
    sheet.save(path, format="PNG")


def _load(name: str, device: torch.device, dtype: str | None, size: int) -> Autoencoder:
    autoencoder = load_autoencoder(find_autoencoder(name))
    unit = autoencoder.compression
    if size % unit or size < SMALLEST_SIDE:
        raise RequestError(
            f"{name} takes sizes that are multiples of {unit}, at least {SMALLEST_SIDE}, got {size}"
        )
    asked = resolve_dtype(device, dtype, autoencoder.dtype)
    return place(autoencoder, device, part_dtype(device, asked))

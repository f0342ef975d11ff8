"""Conditions: a second latent for each sample, from a cache of its own.

The cache of conditions is made by the same `opensana encode`, from pictures named as those that
they belong to. Samples meet by their keys.

S samples, B batch, C channels, h w latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opensana.errors import DataError
from opensana.features.latents import Features

# What both caches must have been made with.
ALIKE = ("autoencoder", "latent_version")


@dataclass(frozen=True)
class Conditions:
    """The latents of a second cache, by the samples of the first."""

    features: Features
    of: np.ndarray
    """Of each sample the number of its condition, int64 [S]."""

    @classmethod
    def open(cls, folder: str | Path, samples: Features) -> "Conditions":
        """The conditions of `samples`; DataError if a sample has none, or one of another shape."""
        features = Features.open(folder)
        for name in ALIKE:
            ours, theirs = samples.keys.get(name), features.keys.get(name)
            if ours != theirs:
                raise DataError(
                    f"the conditions in {folder} were made with another {name} ({theirs!r}) than "
                    f"the samples ({ours!r}); encode them with the same model"
                )
        places = {line["key"]: place for place, line in enumerate(features.samples)}
        keys = [line["key"] for line in samples.samples]
        missing = [key for key in keys if key not in places]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(keys)} samples have no condition in {folder}, the first "
                f"is {missing[0]!r}; name the condition's picture as the sample's and encode again"
            )
        conditions = cls(features, np.array([places[key] for key in keys]))
        conditions._check_shapes(samples, folder)
        return conditions

    def _check_shapes(self, samples: Features, folder: str | Path) -> None:
        ours, theirs = (
            np.array([latents.shape[1:] for latents in cache.latents])[cache.buckets]
            for cache in (samples, self.features)
        )
        wrong = np.flatnonzero((ours != theirs[self.of]).any(axis=1))
        if len(wrong):
            sample = int(wrong[0])
            raise DataError(
                f"the condition of {samples.sample(sample).key!r} in {folder} has the shape "
                f"{theirs[self.of[sample]].tolist()}, its sample {ours[sample].tolist()}; make its "
                "picture as large as the sample's, and encode with the same --size"
            )

    def batch(self, samples: Sequence[int]) -> Tensor:
        """The conditions [B, C, h, w] of samples of one bucket, float32."""
        latents = [self.features.latent(self.of[sample]) for sample in samples]
        return torch.from_numpy(np.stack(latents).astype(np.float32))

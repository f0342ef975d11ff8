"""Conditions of a ControlNet: a second latent for each sample, from a second cache.

The cache is made by `opensana encode` from pictures with the same names. Samples are matched by
key.

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

# Cache keys that must be equal in both.
ALIKE = ("autoencoder", "latent_version")


@dataclass(frozen=True)
class Conditions:
    """The latents of a second cache, indexed by the samples of the first."""

    features: Features
    of: np.ndarray
    """Each sample's index in the second cache, int64 [S]."""

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
        index = {line["key"]: number for number, line in enumerate(features.samples)}
        keys = [line["key"] for line in samples.samples]
        missing = [key for key in keys if key not in index]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(keys)} samples have no condition in {folder}, the first "
                f"is {missing[0]!r}; name the condition's picture as the sample's and encode again"
            )
        of = np.array([index[key] for key in keys])
        ours, theirs = (
            np.array([latents.shape[1:] for latents in cache.latents])[cache.buckets]
            for cache in (samples, features)
        )
        wrong = np.flatnonzero((ours != theirs[of]).any(axis=1))
        if len(wrong):
            sample = int(wrong[0])
            raise DataError(
                f"the condition of {samples.sample(sample).key!r} in {folder} has the shape "
                f"{theirs[of[sample]].tolist()}, its sample {ours[sample].tolist()}; make its "
                "picture as large as the sample's, and encode with the same --size"
            )
        return cls(features, of)

    def batch(self, samples: Sequence[int]) -> Tensor:
        """The conditions [B, C, h, w] of samples of one bucket, float16 as they are stored."""
        return torch.from_numpy(
            np.stack([self.features.latent(self.of[sample]) for sample in samples])
        )

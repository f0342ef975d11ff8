"""The Fréchet distance between the features of two sets of pictures (Heusel et al. 2017, eq. 6).

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))    with means m and covariances C

Published FIDs take InceptionV3's features (`inception.py`). The image embeddings of a CLIP,
published or trained here, give figures that compare with each other, not with a published FID.

B batch, D features, H W size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from opensana.errors import DataError, WeightsError
from opensana.files.writing import read_json
from opensana.metrics.library_models import load_model
from opensana.metrics.small_clip import CLASS_NAME, load_clip
from opensana.weights.locate import locate_library

Extract = Callable[[Tensor], Tensor]
"""Pictures [B, 3, H, W] in 0..1 to features [B, D]."""

CLIP_KINDS = ("clip", "clip_vision_model")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class Moments:
    """Mean and covariance of features that come in batches, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total = self.products = torch.zeros((), dtype=torch.float64)

    def add(self, features: Tensor, counts: Tensor | None = None) -> None:
        """Features [B, D]; with `counts` [B], each as often as it says."""
        values = features.cpu().double()  # an Apple GPU has no float64
        weighted = values if counts is None else values * counts.double()[:, None]
        self.count += len(values) if counts is None else int(counts.sum())
        self.total = self.total + weighted.sum(0)
        self.products = self.products + weighted.T @ values

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """Unbiased, [D, D]."""
        if self.count < 2:
            raise DataError(f"a Fréchet distance needs 2 pictures or more, got {self.count}")
        centred = self.products - self.count * torch.outer(self.mean, self.mean)
        return centred / (self.count - 1)


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D], as files of statistics keep them; float64."""

    mean: Tensor
    covariance: Tensor


def frechet_distance(first: Moments | Gaussian, second: Moments | Gaussian) -> float:
    """At least 0; too large where pictures are fewer than features."""
    return frechet_from(first)(second)


def frechet_from(first: Moments | Gaussian) -> Callable[[Moments | Gaussian], float]:
    """The distance from one set to any other; half of the work is done once."""
    # The trace of the root needs eigenvalues alone, and those of R C2 R, with R R = C1, are real.
    mean, one = first.mean, first.covariance
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(second: Moments | Gaussian) -> float:
        other = second.covariance
        shared = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
        apart = (mean - second.mean).square().sum()
        # Rounding leaves equal sets a little below or above 0.
        return max(0.0, float(apart + one.trace() + other.trace() - 2 * shared))

    return distance


@dataclass(frozen=True)
class Root:
    """Mean [D], and rows [N, D] whose products `rows.T @ rows` are the covariance; float64."""

    mean: Tensor
    rows: Tensor


def root_of(features: Tensor, counts: Tensor | None = None) -> Root:
    """Of features [N, D]; with `counts` [N], each as often as it says."""
    values = features.double()
    often = torch.ones(len(values), dtype=torch.float64) if counts is None else counts.double()
    total = float(often.sum())
    if total < 2:
        raise DataError(f"a Fréchet distance needs 2 pictures or more, got {total:g}")
    mean = (often[:, None] * values).sum(0) / total
    seen = often > 0
    return Root(mean, (often[seen, None] / (total - 1)).sqrt() * (values[seen] - mean))


def frechet_of_roots(first: Root, second: Root) -> float:
    """The same distance without a covariance: faster where pictures are fewer than features."""
    # The trace of the root of C1 C2 is the sum of the singular values of R1 R2'.
    shared = torch.linalg.svdvals(first.rows @ second.rows.T).sum()
    apart = (first.mean - second.mean).square().sum()
    traces = first.rows.square().sum() + second.rows.square().sum()
    return max(0.0, float(apart + traces - 2 * shared))


def clip_features(folder: str | Path, device: torch.device) -> Extract:
    """The image embeddings of a CLIP folder: of transformers, or of `opensana train`."""
    folder = locate_library(folder)
    config = read_json(folder / "config.json")
    if config.get("_class_name") == CLASS_NAME:
        clip = load_clip(folder).to(device)
        return torch.inference_mode()(lambda pixels: clip.embed_images(pixels.to(device) * 2 - 1))
    kind = config.get("model_type")
    if kind not in CLIP_KINDS:
        raise WeightsError(f"{folder} holds a {kind} model, expected CLIP: a folder of its weights")
    model = load_model(folder, "CLIPVisionModelWithProjection").eval().to(device, torch.float32)
    size = model.config.image_size
    mean = torch.tensor(CLIP_MEAN, device=device)[:, None, None]
    deviation = torch.tensor(CLIP_DEVIATION, device=device)[:, None, None]

    @torch.inference_mode()
    def embed(pictures: Tensor) -> Tensor:
        small = functional.interpolate(
            pictures.to(device), size=(size, size), mode="bicubic", antialias=True
        )
        return model(pixel_values=(small.clamp(0, 1) - mean) / deviation).image_embeds

    return embed

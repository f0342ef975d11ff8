"""Finds emoji in pictures without a judge network: every kind is known, so it is searched for.

What differs from the background is compared with each kind's own difference from it, by the cosine
of the two: 1 is a perfect match, whatever the contrast. A kind is searched at many places and
sizes; what is found counts when, of all kinds, none is nearer there. Kinds in other colours than
their own are compared by lightness alone: the shape is one question and the colour another.

K kinds, C channels (3, or 1 for lightness), s side of a template.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from opensana.datasets.emoji.dataset import Record
from opensana.datasets.emoji.generator import Vocabulary
from opensana.datasets.emoji.lab import to_lab
from opensana.datasets.emoji.recolour import OBJECT_COLOURS, main_colour, recolour

TEMPLATE, CANVAS = 64, 128
SIDES = (0.2, 0.26, 0.33, 0.4, 0.46, 0.5, 0.57, 0.65, 0.8, 1.0)
"""Sizes that are tried, in shares of the picture's side."""
LEAST = 0.7
"""The cosine from which on something is there."""
OVERLAP = 0.3
"""Of the smaller of two boxes at most, for both to be counted."""
LIGHTNESS_COUNTS = 0.5  # against hue and chroma, when colours are compared


@dataclass(frozen=True)
class Found:
    """Where something was found, in shares of the picture's side."""

    left: float
    top: float
    side: float
    score: float

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2


class Detector:
    """Every kind of a vocabulary, on white."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.rows = {kind: row for row, kind in enumerate(vocabulary.kinds)}
        self._known = lru_cache(maxsize=None)(self._references)
        self._small = lru_cache(maxsize=None)(self._make_small)
        self._painted = lru_cache(maxsize=None)(self._make_painted)

    def find(self, picture: Image.Image, kind: int, colour: str | None = None) -> list[Found]:
        """All places where the picture shows a kind, the best first.

        With a colour, by lightness: the colour itself may be another one.
        """
        canvas = torch.from_numpy(difference(_resized(picture, CANVAS), colour is not None))
        template = torch.from_numpy(difference(self._on_white(kind, colour), colour is not None))
        return [
            found
            for found in _apart(_places(canvas, template))
            if self.shows(picture, found, kind, colour)
        ]

    def shows(
        self, picture: Image.Image, found: Found, kind: int, colour: str | None = None
    ) -> bool:
        """Whether of all kinds this one is nearest to what was found."""
        crop = _cropped(picture, found)
        own = difference(crop, colour is not None).ravel()
        nearest = int(np.argmax(self._known(colour) @ own))
        return self._family(self.vocabulary.kinds[nearest]) == self._family(kind)

    def colour_of(self, picture: Image.Image, found: Found, kind: int) -> str:
        """The nearest of the nine colours to the part of a kind that is painted."""
        seen = to_lab(_weighted(_cropped(picture, found), self._weights(kind)))
        weight = np.array([LIGHTNESS_COUNTS, 1.0, 1.0])
        wanted = {
            name: to_lab(_weighted(self._on_white(kind, name), self._weights(kind)))
            for name in OBJECT_COLOURS
        }
        return min(wanted, key=lambda name: float(np.linalg.norm(weight * (wanted[name] - seen))))

    def _family(self, kind: int) -> str:
        return self.record(kind).family

    def record(self, kind: int) -> Record:
        return self.vocabulary.data.records[kind]

    def _references(self, colour: str | None) -> np.ndarray:
        """All kinds as unit vectors [K, C * s * s], in a colour those that can have it."""
        rows = []
        for kind in self.vocabulary.kinds:
            painted = colour if kind in self._colourable else None
            rows.append(difference(self._on_white(kind, painted), colour is not None).ravel())
        known = np.stack(rows)
        return known / np.maximum(np.linalg.norm(known, axis=1, keepdims=True), 1e-6)

    @property
    def _colourable(self) -> frozenset[int]:
        return frozenset(self.vocabulary.colourable)

    def _make_small(self, kind: int) -> np.ndarray:
        """RGBA uint8 [s, s, 4]."""
        image = Image.fromarray(np.asarray(self.vocabulary.data.pictures[kind])).convert("RGBa")
        small = image.resize((TEMPLATE, TEMPLATE), Image.Resampling.LANCZOS)
        return np.asarray(small.convert("RGBA"))

    def _make_painted(self, kind: int, colour: str) -> np.ndarray:
        return recolour(self._small(kind), colour, main_colour(self._small(kind)))

    def _on_white(self, kind: int, colour: str | None) -> np.ndarray:
        """Float32 [s, s, 3] in 0..255."""
        layer = self._small(kind) if colour is None else self._painted(kind, colour)
        alpha = layer[..., 3:].astype(np.float32) / 255
        return layer[..., :3] * alpha + 255 * (1 - alpha)

    def _weights(self, kind: int) -> np.ndarray:
        """How much each pixel [s, s] belongs to what is painted."""
        small = self._small(kind)
        return main_colour(small).amount * (small[..., 3] == 255)


def difference(picture: np.ndarray, by_lightness: bool) -> np.ndarray:
    """How far a picture [H, W, 3] in 0..255 is from white, float32 [C, H, W]."""
    if by_lightness:
        lightness = to_lab(picture.astype(np.float32))[..., 0]
        return (lightness[None] / 100 - 1).astype(np.float32)
    return np.moveaxis(picture.astype(np.float32) / 255 - 1, -1, 0)


def _places(canvas: torch.Tensor, template: torch.Tensor) -> list[Found]:
    """The places where a template [C, s, s] of some size has a cosine of LEAST or more."""
    seen = canvas.double()
    frequencies = torch.fft.rfft2(seen)
    sums = functional.pad(seen.square().sum(0).cumsum(0).cumsum(1), (1, 0, 1, 0))
    return [place for side in SIDES for place in _of_size(frequencies, sums, template, side)]


def _of_size(
    frequencies: torch.Tensor, sums: torch.Tensor, template: torch.Tensor, side: float
) -> list[Found]:
    """... of one size, by the canvas' frequencies and the sums of its squares from its corner.

    A template that fits into the canvas does not wrap round it, so circular products are right.
    """
    pixels = round(side * CANVAS)
    size = (pixels, pixels)
    scaled = functional.interpolate(template[None], size, mode="bilinear", antialias=True)[0]
    own = torch.fft.rfft2(scaled.double(), s=(CANVAS, CANVAS))
    product = torch.fft.irfft2((frequencies * own.conj()).sum(0), s=(CANVAS, CANVAS))
    last = CANVAS - pixels + 1
    energy = sums[pixels:, pixels:] - sums[:last, pixels:] - sums[pixels:, :last]
    energy = (energy + sums[:last, :last]).clamp(min=0.0)
    score = product[:last, :last] / (energy.sqrt() * scaled.norm()).clamp(min=1e-6)
    rows, columns = torch.nonzero(score >= LEAST, as_tuple=True)
    return [
        Found(column / CANVAS, row / CANVAS, pixels / CANVAS, value)
        for row, column, value in zip(
            rows.tolist(), columns.tolist(), score[rows, columns].tolist(), strict=True
        )
    ]


def _apart(places: list[Found]) -> list[Found]:
    """The best places, without those that are mostly the same one as a better."""
    # Equal up to rounding: the first in reading order.
    left = sorted(places, key=lambda found: round(found.score, 6), reverse=True)
    kept: list[Found] = []
    while left:
        best, *left = left
        kept.append(best)
        left = [found for found in left if _overlap(best, found) <= OVERLAP]
    return kept


def _overlap(one: Found, other: Found) -> float:
    """The share of the smaller box that is in the other."""
    area = 1.0
    for a, b in ((one.left, other.left), (one.top, other.top)):
        area *= max(0.0, min(a + one.side, b + other.side) - max(a, b))
    return area / min(one.side, other.side) ** 2


def _resized(picture: Image.Image, size: int) -> np.ndarray:
    return np.asarray(picture.convert("RGB").resize((size, size), Image.Resampling.BOX))


def _cropped(picture: Image.Image, found: Found) -> np.ndarray:
    """The box of what was found, uint8 [s, s, 3]."""
    width, height = picture.size
    box = (
        found.left * width,
        found.top * height,
        (found.left + found.side) * width,
        (found.top + found.side) * height,
    )
    image = picture.convert("RGB")
    return np.asarray(image.resize((TEMPLATE, TEMPLATE), Image.Resampling.BICUBIC, box=box))


def _weighted(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The mean colour [3] of a picture [s, s, 3]."""
    return np.average(picture.reshape(-1, 3), axis=0, weights=weights.ravel() + 1e-6)

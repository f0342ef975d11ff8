"""Aspect-ratio buckets: batches of one shape, so that pictures are hardly cropped.

The published table for 1024 pixels has 40 sizes, from 1:4 to 4:1; that for 512 is half of it, 2048
and 4096 are two and four times it. One rule gives it, except for one size: both sides are multiples
of base / 16, and the area is 0.9 to 1 times base ** 2. The rule makes a table for any base; if
base / 16 is no multiple of the autoencoder's compression, the grid is the next one that is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from opensana.errors import ConfigError
from opensana.pictures.resize import bicubic, lanczos

UNITS = 16  # in the side of a published square
MISSING = (21, 11)  # height, width in units: 1344 x 704, which the published table lacks
LEAST_AREA = 0.9
LARGEST_ASPECT = 4.0
SHARP = 2048  # pixels; from here the published filter is Lanczos


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels; `key` is its height / width, as in the published tables."""

    height: int
    width: int

    @property
    def key(self) -> float:
        return round(self.height / self.width, 2)

    def covering_box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The largest center crop of this shape in a picture: left, top, right, bottom."""
        wide, high = width, height
        if self.width * height >= self.height * width:
            high = max(1, round(self.height * width / self.width))
        else:
            wide = max(1, round(self.width * height / self.height))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high


@lru_cache
def buckets(base: int, unit: int = 32) -> tuple[Bucket, ...]:
    """The buckets of about `base` x `base` pixels, by ascending height / width.

    `unit`, the autoencoder's compression, divides all sides; ConfigError if it does not divide
    `base`.
    """
    if base < 1 or unit < 1 or base % unit:
        raise ConfigError(f"the size must be a multiple of {unit} pixels, got {base}")
    coarsest = max(unit, base // UNITS)
    step = max(step for step in range(unit, coarsest + 1, unit) if base % step == 0)
    side = base // step
    longest = range(1, 2 * side + 1)
    sizes = [(h, w) for h in longest for w in longest if _allowed(h, w, side)]
    sizes.sort(key=lambda size: size[0] / size[1])
    return tuple(Bucket(high * step, wide * step) for high, wide in sizes)


def _allowed(height: int, width: int, side: int) -> bool:
    """Whether a size, in units, is in the table."""
    near = LEAST_AREA * side**2 <= height * width <= side**2
    slim = max(height, width) > LARGEST_ASPECT * min(height, width)
    return near and not slim and (side, height, width) != (UNITS, *MISSING)


def nearest(choices: Sequence[Bucket], width: int, height: int) -> Bucket:
    """The bucket with the key nearest to a picture's height / width; the wider one of two."""
    ratio = height / width
    return min(choices, key=lambda bucket: abs(bucket.key - ratio))


def crop_and_resize(pixels: np.ndarray, bucket: Bucket) -> np.ndarray:
    """Center-crop uint8 [h, w, 3] to the bucket's shape, then resize it to the bucket.

    Cropping first avoids enlarging all of a very long picture. The filters are the published ones:
    bicubic with antialiasing, and Lanczos from 2048 pixels on.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (bucket.height, bucket.width):
        return pixels
    left, top, right, bottom = bucket.covering_box(width, height)
    cut = pixels[top:bottom, left:right]
    resize = lanczos if bucket.height * bucket.width >= LEAST_AREA * SHARP**2 else bicubic
    return resize(cut, bucket.width, bucket.height)

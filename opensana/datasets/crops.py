"""Random crops for training the autoencoder, from prepared RGBA arrays or any data source.

Crops are cut from full-size pictures, whose statistics are those of inference. Pictures with
transparency are composited on a random background. All randomness comes from the caller's
generator.
"""

import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from opensana.datasets.record import Reject
from opensana.datasets.rejects import MAX_BAD, check_bad
from opensana.datasets.sources import open_source
from opensana.datasets.sources.indexed import Indexed
from opensana.errors import DataError
from opensana.pictures.decode import decode

WHITE = np.full(3, 255, dtype=np.uint8)
ALIGNMENT = 32
SMALLEST = 0.4


class Pictures(Protocol):
    """A numbered set of uint8 pictures [H, W, 4], or [H, W, 3] when opaque."""

    names: list[str]

    def read(self, index: int) -> np.ndarray: ...


class PreparedPictures:
    """`pictures.npy` uint8 [K, H, W, 4], memory-mapped, and `records.jsonl` with their splits."""

    def __init__(self, folder: Path, *, split: str) -> None:
        self.pixels = np.load(folder / "pictures.npy", mmap_mode="r", allow_pickle=False)
        with (folder / "records.jsonl").open(encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        if len(records) != len(self.pixels):
            raise DataError(
                f"{folder} has {len(self.pixels)} pictures but {len(records)} records;"
                " prepare it again"
            )
        self.rows = [row for row, record in enumerate(records) if record["split"] == split]
        self.names = [str(records[row].get("hexcode", row)) for row in self.rows]

    def read(self, index: int) -> np.ndarray:
        return self.pixels[self.rows[index]]


class NoPictures:
    """An empty split."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def read(self, index: int) -> np.ndarray:
        raise IndexError(index)


class SourcePictures:
    """The pictures of any data source, decoded on access.

    Headers are checked when the source is opened. A picture whose pixels turn out to be damaged is
    reported on stderr and replaced by the next good one in the source's order: this depends on the
    files alone, so a resumed run draws the same. DataError once more than `max_bad` are damaged.
    """

    def __init__(self, source: Indexed, *, max_bad: float = MAX_BAD) -> None:
        check_bad(source.where, source.rejects, len(source), max_bad=max_bad)
        self.source, self.max_bad = source, max_bad
        self.names = [source.record(index).key for index in range(len(source))]
        self.damaged: dict[int, Reject] = {}

    def read(self, index: int) -> np.ndarray:
        for number in chain(range(index, len(self.names)), range(index)):
            try:
                if number not in self.damaged:
                    return decode(
                        self.source.picture(number), limits=self.source.limits, alpha=True
                    )
            except DataError as error:
                reject = Reject(self.source.paths[number], str(error))
                self.damaged[number] = reject
                print(f"refused the picture {reject.path!r}: it {reject.reason}", file=sys.stderr)
                bad = [*self.source.rejects, *self.damaged.values()]
                good = len(self.names) - len(self.damaged)
                check_bad(self.source.where, bad, good, max_bad=self.max_bad)
        raise DataError(f"{self.source.where} has no picture that can be decoded")


class PictureSource:
    """Training crops and whole pictures as uint8 RGB [H, W, 3]."""

    def __init__(
        self, pictures: Pictures, *, white: float = 0.5, rescale: float = 0.0, aligned: float = 0.5
    ) -> None:
        self.pictures = pictures
        self.white, self.rescale, self.aligned = white, rescale, aligned

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        split: str = "train",
        white: float = 0.5,
        rescale: float = 0.0,
        aligned: float = 0.5,
    ) -> "PictureSource":
        """Open a prepared folder, or a path for `open_source` (which has no held-out split)."""
        if (Path(folder) / "pictures.npy").exists():
            pictures = PreparedPictures(Path(folder), split=split)
        elif split == "train":
            pictures = SourcePictures(open_source(folder))
        else:
            pictures = NoPictures()
        return cls(pictures, white=white, rescale=rescale, aligned=aligned)

    def __len__(self) -> int:
        return len(self.pictures.names)

    def name(self, index: int) -> str:
        return self.pictures.names[index]

    def sample(self, index: int, generator: np.random.Generator, crop: int) -> np.ndarray:
        """One random crop [crop, crop, 3]; a crop of the picture's size is the whole picture."""
        picture = self.pictures.read(index)
        background = WHITE
        if generator.random() >= self.white:
            background = generator.integers(0, 256, size=3, dtype=np.uint8)
        if generator.random() < self.rescale:
            picture, canvas, corner = _shrunk(picture, generator, crop)
        else:
            picture = _at_least(picture, crop)
            canvas, corner = picture.shape[:2], (0, 0)
        top = self._offset(canvas[0] - crop, generator)
        left = self._offset(canvas[1] - crop, generator)
        return _window(picture, (top - corner[0], left - corner[1]), crop, background)

    def square(self, index: int, size: int, *, background: np.ndarray = WHITE) -> np.ndarray:
        """The picture on a plain background, center-cropped and resized to [size, size, 3]."""
        picture = self.pictures.read(index)
        height, width = picture.shape[:2]
        if (height, width) != (size, size):
            image = Image.fromarray(np.ascontiguousarray(picture))
            picture = np.asarray(ImageOps.fit(image, (size, size)))
        return _window(picture, (0, 0), size, background)

    def _offset(self, room: int, generator: np.random.Generator) -> int:
        if generator.random() < self.aligned:
            return int(generator.integers(room // ALIGNMENT + 1)) * ALIGNMENT
        return int(generator.integers(room + 1))


def stacked(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [H, W, 3] each -> uint8 [B, 3, H, W]."""
    return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))


def _shrunk(
    picture: np.ndarray, generator: np.random.Generator, crop: int
) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
    """Shrink the picture by a random factor; returns (picture, canvas size, corner on the canvas).

    A transparent one gets a random position on its old canvas; an opaque one is its own canvas.
    """
    height, width = picture.shape[:2]
    opaque = picture.shape[2] == 3
    floor = min(1.0, max(SMALLEST, crop / min(height, width))) if opaque else SMALLEST
    factor = generator.uniform(floor, 1.0)
    small = _resized(picture, max(1, round(height * factor)), max(1, round(width * factor)))
    if opaque:
        small = _at_least(small, crop)
        return small, (small.shape[0], small.shape[1]), (0, 0)
    canvas = (max(height, crop), max(width, crop))
    top = int(generator.integers(canvas[0] - small.shape[0] + 1))
    left = int(generator.integers(canvas[1] - small.shape[1] + 1))
    return small, canvas, (top, left)


def _at_least(picture: np.ndarray, crop: int) -> np.ndarray:
    """The picture, enlarged if its shorter side is smaller than the crop."""
    height, width = picture.shape[:2]
    if min(height, width) >= crop:
        return picture
    factor = crop / min(height, width)
    return _resized(picture, max(crop, round(height * factor)), max(crop, round(width * factor)))


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _window(
    picture: np.ndarray, corner: tuple[int, int], crop: int, background: np.ndarray
) -> np.ndarray:
    """The crop with its top left at `corner`, filled with background outside of the picture."""
    result = np.empty((crop, crop, 3), dtype=np.uint8)
    result[:] = background
    (top, left), (height, width) = corner, picture.shape[:2]
    rows = slice(max(top, 0), max(min(top + crop, height), 0))
    columns = slice(max(left, 0), max(min(left + crop, width), 0))
    part = np.asarray(picture[rows, columns])
    if part.size == 0:
        return result
    target = result[
        rows.start - top : rows.start - top + part.shape[0],
        columns.start - left : columns.start - left + part.shape[1],
    ]
    if part.shape[2] == 4:  # alpha compositing in integers, rounded
        alpha = part[..., 3:].astype(np.uint16)
        mixed = part[..., :3] * alpha + background * (255 - alpha) + 127
        part = (mixed // 255).astype(np.uint8)
    target[:] = part
    return result

"""InitImage: the picture that an edit starts from, and which of its pixels are drawn anew."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from opensana.drawing.mask import drawn_part
from opensana.drawing.recorded import DIGEST, digest
from opensana.errors import RequestError
from opensana.models.resolution_bins import Size
from opensana.pictures.input import ImageSource, read_image, read_layer
from opensana.pictures.resize import covering
from opensana.request import LARGEST_SIZE, SIZE_STEP

STRENGTH = 0.6
"""Of a request for a whole picture that leaves it out; with a mask it is 1."""
FAR_LARGER = 4  # times the pixels that a model was trained for
FEATHER = 8
"""How many pixels inside the mask's edge blend from the original to what was drawn."""


@dataclass(frozen=True)
class InitImage:
    """A picture and, for inpainting, its mask; `read_init_image` makes one from files."""

    image: Image.Image
    """RGB."""
    mask: Image.Image | None = None
    """Of the picture's size, mode L: 255 is drawn anew, 0 is kept. None: all is drawn anew."""

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask.getbbox() is None:
            raise RequestError(
                "the mask is black on the whole picture; paint white what should be drawn anew",
                field="mask",
            )

    @cached_property
    def provenance(self) -> dict[str, str]:
        """SHA-256 of the pixels, by which a PNG remembers what it was drawn from."""
        parts = {"image": self.image, "mask": self.mask}
        return {name + DIGEST: digest(part) for name, part in parts.items() if part is not None}

    @property
    def default_strength(self) -> float:
        """The strength of a request that leaves it out."""
        return STRENGTH if self.mask is None else 1.0

    def size_for(self, width: int | None, height: int | None, unit: int) -> Size:
        """The size of a request, by default the picture's shape in steps of `unit`.

        Of a size that is half given the other half follows the picture's shape.
        """
        unit = math.lcm(unit, SIZE_STEP)
        shape, width_given = self.image.width / self.image.height, bool(width)
        if width is None:
            width = _rounded(height * shape if height else self.image.width, unit)
        if height is None:
            height = _rounded(width / shape if width_given else self.image.height, unit)
        return width, height

    def resized(self, width: int, height: int) -> "InitImage":
        """Scaled until it covers the size, then cut to it about its centre.

        A pixel of the new mask is white when any white falls on it.
        """
        size = (width, height)
        if self.image.size == size:
            return self
        image = covering(self.image, *size)
        if self.mask is None:
            return InitImage(image)
        shares = ImageOps.fit(self.mask.convert("F"), size, Image.Resampling.BOX)
        return InitImage(image, _black_and_white(np.asarray(shares) > 0))

    def resize_notes(self, width: int, height: int, *, native: int) -> Iterator[str]:
        """What the user should know of `resized`, with a model for `native` x `native` pixels."""
        if self.mask is not None and self.mask.getextrema() == (255, 255):
            yield "the mask is white on the whole picture: all of it is drawn anew"
        if self.image.size != (width, height):
            cut = "" if self.image.width * height == self.image.height * width else " and cut"
            yield (
                f"the image of {self.image.width} x {self.image.height} pixels was scaled{cut} "
                f"to {width} x {height}"
            )
        if width * height > FAR_LARGER * native**2:
            yield (
                f"{width} x {height} pixels are far more than the {native} x {native} that the "
                f"model was trained for: slow and worse; try a width of {native}"
            )

    def cells(self, size: int) -> np.ndarray | None:
        """The mask on a grid of `size` pixels, bool [h, w]: True for a cell with any white."""
        if self.mask is None:
            return None
        white = np.asarray(self.mask) > 0
        rows, columns = white.shape
        return np.any(white.reshape(rows // size, size, columns // size, size), axis=(1, 3))

    def paste(self, drawn: Image.Image) -> Image.Image:
        """What was drawn where the mask is white; elsewhere every bit of the original."""
        return drawn if self.blend is None else Image.composite(drawn, self.image, self.blend)

    @cached_property
    def blend(self) -> Image.Image | None:
        """The share of what was drawn, mode L: 0 outside the mask, 255 deep inside it.

        Between them it rises in equal steps over the outer FEATHER pixels of the mask, over fewer
        where the mask is thinner, so that a thin stroke is drawn anew as well.
        """
        if self.mask is None:
            return None
        depth, eroded = np.zeros(self.mask.size[::-1], np.uint8), self.mask
        for _ in range(FEATHER):
            depth += np.asarray(eroded) > 0
            eroded = eroded.filter(ImageFilter.MinFilter(3))
        deepest = Image.fromarray(depth)
        for _ in range(FEATHER - 1):
            deepest = deepest.filter(ImageFilter.MaxFilter(3))
        share = depth / np.maximum(np.asarray(deepest), 1)
        return Image.fromarray((255 * share).round().astype(np.uint8))


def read_init_image(
    image: ImageSource, mask: ImageSource | None, notice: Callable[[str], None]
) -> InitImage:
    """The picture and its mask, read: the mask's `drawn_part` is drawn anew."""
    picture = read_image(image)
    return InitImage(picture, None if mask is None else _read_mask(mask, picture.size, notice))


def _read_mask(
    source: ImageSource, size: tuple[int, int], notice: Callable[[str], None]
) -> Image.Image:
    layer = read_layer(source, "mask")
    height, width = layer.shape[:2]
    if (width, height) != size:
        raise RequestError(
            f"the mask has {width} x {height} pixels, its image {size[0]} x {size[1]}; "
            "make them equal",
            field="mask",
        )
    white, note = drawn_part(layer)
    if note is not None:
        notice(note)
    return _black_and_white(white)


def _black_and_white(white: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(white, np.uint8(255), np.uint8(0)))


def _rounded(pixels: float, unit: int) -> int:
    return min(max(round(pixels / unit), 1), LARGEST_SIZE // unit) * unit

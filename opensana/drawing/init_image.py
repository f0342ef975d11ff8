"""Original: the picture that an edit starts from, and which of its pixels are drawn anew."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from opensana.drawing.mask import drawn_part
from opensana.errors import RequestError
from opensana.pictures.input import ImageSource, read_image, read_layer
from opensana.pictures.resize import covering
from opensana.request import LARGEST_SIZE, SIZE_STEP, Request

STRENGTH = 0.6
"""The strength of a request for a whole picture that leaves it out; with a mask it is 1."""
FAR_LARGER = 4  # times the pixels that a model was trained for
FEATHER = 8
"""How many pixels inside the mask's edge blend from the original to what was drawn."""


@dataclass(frozen=True)
class Original:
    """A picture and, for inpainting, its mask; `read_original` makes one from files."""

    image: Image.Image
    """RGB."""
    mask: Image.Image | None = None
    """Of the picture's size, mode L: 255 is drawn anew, 0 is kept. None: all is drawn anew."""

    def __post_init__(self) -> None:
        if self.mask is not None and self.mask.getbbox() is None:
            raise RequestError(
                "the mask is black on the whole picture; paint white what should be drawn anew"
            )

    @cached_property
    def facts(self) -> dict[str, str]:
        """SHA-256 of the pixels, by which a PNG remembers what it was drawn from."""
        parts = {"image": self.image, "mask": self.mask}
        return {f"{name}_sha256": _sha256(part) for name, part in parts.items() if part is not None}

    def complete(self, request: Request, unit: int) -> Request:
        """The request with size and strength decided: the picture's shape in steps of `unit`.

        Of a size that is half given the other half follows the picture's shape.
        """
        unit = math.lcm(unit, SIZE_STEP)
        width, height = request.width, request.height
        shape = self.image.width / self.image.height
        if width is None:
            width = _rounded(height * shape if height else self.image.width, unit)
        if height is None:
            height = _rounded(width / shape if request.width else self.image.height, unit)
        strength = request.strength or (STRENGTH if self.mask is None else 1.0)
        return replace(request, width=width, height=height, strength=strength)

    def fit(self, request: Request, *, native: int, notice: Callable[[str], None]) -> "Original":
        """`fitted` to the size of a complete request; `notice` gets its `fit_notes`."""
        assert request.width
        assert request.height
        for note in self.fit_notes(request.width, request.height, native=native):
            notice(note)
        return self.fitted(request.width, request.height)

    def fitted(self, width: int, height: int) -> "Original":
        """Scaled until it covers the size, then cut to it about its centre.

        A pixel of the new mask is white when any white falls on it.
        """
        size = (width, height)
        if self.image.size == size:
            return self
        image = covering(self.image, *size)
        if self.mask is None:
            return Original(image)
        shares = ImageOps.fit(self.mask.convert("F"), size, Image.Resampling.BOX)
        return Original(image, _black_and_white(np.asarray(shares) > 0))

    def fit_notes(self, width: int, height: int, *, native: int) -> Iterator[str]:
        """What the user should know of `fitted`, with a model for `native` x `native` pixels."""
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
        return drawn if self.mask is None else Image.composite(drawn, self.image, self.blend)

    @cached_property
    def blend(self) -> Image.Image:
        """The share of what was drawn, mode L: 0 outside the mask, 255 deep inside it.

        Between them it rises in equal steps over the outer FEATHER pixels of the mask, over fewer
        where the mask is thinner, so that a thin stroke is drawn anew as well.
        """
        assert self.mask is not None
        depth, eroded = np.zeros(self.mask.size[::-1], np.uint8), self.mask
        for _ in range(FEATHER):
            depth += np.asarray(eroded) > 0
            eroded = eroded.filter(ImageFilter.MinFilter(3))
        deepest = Image.fromarray(depth)
        for _ in range(FEATHER - 1):
            deepest = deepest.filter(ImageFilter.MaxFilter(3))
        share = depth / np.maximum(np.asarray(deepest), 1)
        return Image.fromarray((255 * share).round().astype(np.uint8))


def read_original(
    image: ImageSource | None,
    mask: ImageSource | None,
    *,
    strength: float | None = None,
    binned: bool = False,
    notice: Callable[[str], None] = lambda _: None,
) -> Original | None:
    """The original of a request, None when it has none; a mask's `drawn_part` is drawn anew."""
    if image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise RequestError(f"{name} was given without a picture; add the image to change")
        return None
    if binned:
        raise RequestError(
            "a picture to start from is drawn at its own size, not binned; leave binned out"
        )
    picture = read_image(image)
    return Original(picture, None if mask is None else _read_mask(mask, picture.size, notice))


def _read_mask(
    source: ImageSource, size: tuple[int, int], notice: Callable[[str], None]
) -> Image.Image:
    layer = read_layer(source, "mask")
    height, width = layer.shape[:2]
    if (width, height) != size:
        raise RequestError(
            f"the mask has {width} x {height} pixels, its image {size[0]} x {size[1]}; "
            "make them equal"
        )
    white, note = drawn_part(layer)
    if note is not None:
        notice(note)
    return _black_and_white(white)


def _black_and_white(white: np.ndarray) -> Image.Image:
    return Image.fromarray(np.where(white, np.uint8(255), np.uint8(0)))


def _rounded(pixels: float, unit: int) -> int:
    return min(max(round(pixels / unit), 1), LARGEST_SIZE // unit) * unit


def _sha256(image: Image.Image) -> str:
    size = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()

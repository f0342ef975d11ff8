"""Images in a request: a path, encoded bytes or a Pillow image to upright 8-bit RGB.

`pictures/decode.py` decodes them; here are the limits for requests, and errors are RequestErrors.
Bytes and pixels are limited before anything is decoded.
"""

import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from opensana.errors import DataError, RequestError
from opensana.pictures.decode import FORMATS, Limits, TooManyPixelsError, decode, upright
from opensana.request import LARGEST_SIZE

__all__ = ["FORMATS", "ImageSource", "read_image", "read_layer"]

ImageSource = str | Path | bytes | Image.Image
"""A path, the bytes of a file, or a Pillow image."""

MOST_BYTES = 50 * 2**20
MOST_PIXELS = LARGEST_SIZE**2


def read_image(source: ImageSource, name: str = "image") -> Image.Image:
    """The picture as upright 8-bit RGB, composited on white; the first frame of an animation.

    `name` is what errors call it; as their field, with _ for a space.
    """
    return Image.fromarray(_read(source, name, alpha=False))


def read_layer(source: ImageSource, name: str = "image") -> np.ndarray:
    """As `read_image`, as uint8 [H, W, 3], or [H, W, 4] if it has transparency."""
    return _read(source, name, alpha=True)


def _read(source: ImageSource, name: str, *, alpha: bool) -> np.ndarray:
    what = f"{name} {str(source)!r}" if isinstance(source, str | Path) else f"the {name}"
    try:
        if isinstance(source, str | Path):
            source = _content(Path(source), what)
        _check(source, what)
        return _decoded(source, what, alpha=alpha)
    except RequestError as error:
        error.field = name.replace(" ", "_")
        raise


def _decoded(source: bytes | Image.Image, what: str, *, alpha: bool) -> np.ndarray:
    try:
        if isinstance(source, Image.Image):
            return upright(source, alpha=alpha)
        limits = Limits(
            MOST_BYTES, MOST_PIXELS, sys.maxsize, side=1, aspect=math.inf, animated=True
        )
        return decode(source, limits=limits, alpha=alpha)
    except TooManyPixelsError:
        raise _too_many_pixels(what) from None
    except DataError as error:
        raise RequestError(
            f"{what} {error}; save it anew as a PNG, JPEG or WebP of 8 bits"
        ) from error


def _content(path: Path, what: str) -> bytes:
    try:
        if not path.exists():
            raise RequestError(f"there is no {what}; check the path")
        if not path.is_file():
            raise RequestError(f"{what} is not a file; name a PNG, JPEG or WebP picture")
        if path.stat().st_size > MOST_BYTES:
            raise _too_many_bytes(what)
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"cannot read {what}: {error.strerror}") from None


def _check(source: object, what: str) -> None:
    """RequestError for what is no picture, before it is opened."""
    if isinstance(source, bytes):
        if not source:
            raise RequestError(f"{what} is empty, no PNG, JPEG or WebP picture")
        if len(source) > MOST_BYTES:
            raise _too_many_bytes(what)
        return
    if not isinstance(source, Image.Image):
        raise RequestError(f"{what} must be a path, bytes or a Pillow image, got {source!r}")
    if not source.width * source.height:
        raise RequestError(f"{what} has no pixels ({source.width} x {source.height})")
    if source.width * source.height > MOST_PIXELS:
        raise _too_many_pixels(what)


def _too_many_bytes(what: str) -> RequestError:
    return RequestError(f"{what} is larger than {MOST_BYTES >> 20} MiB; save it smaller")


def _too_many_pixels(what: str) -> RequestError:
    return RequestError(
        f"{what} has too many pixels; the most is {LARGEST_SIZE} x {LARGEST_SIZE}, make it smaller"
    )

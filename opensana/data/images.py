"""The pictures of a data set: encoded bytes to upright 8-bit pixels, none of them trusted.

A picture is what its first bytes say, whatever its name. Everything that its header can tell is
checked before a pixel is decoded, and every refusal is a DataError whose text completes the
sentence "this picture ...". Rows are converted in bands, so that besides the decoder's own memory
only the result is held.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from opensana.errors import DataError

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
FORMATS = tuple(SUFFIXES)
BAND_PIXELS = 1 << 20
ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)
# (where, what, name): how files begin, those that are refused only to name them
MARKS = (
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"\xff\xd8\xff", "JPEG"),
    (8, b"WEBP", "WEBP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"BM", "BMP"),
    (0, b"%!PS", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"8BPS", "PSD"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
)
_warning_filters = threading.Lock()


@dataclass(frozen=True)
class Limits:
    """What a picture may be at most: its file, its pixels, the memory to decode it, its shape."""

    bytes: int = 100 << 20
    pixels: int = 100_000_000
    memory: int = 850 << 20
    """Bytes that the file, the decoder and the result may need together."""
    side: int = 8
    """Pixels of the shorter side, at least."""
    aspect: float = 10.0
    """The longer side over the shorter one, at most."""


LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """What is known of a picture without decoding it; sizes are after the EXIF rotation."""

    format: str
    width: int
    height: int


def probe(picture: bytes | BinaryIO, *, limits: Limits = LIMITS) -> Header:
    """Format and size from the header alone; DataError if it shows that the picture is refused."""
    with _opened(picture, limits) as (image, orientation):
        width, height = image.size
        if orientation in SIDEWAYS:
            width, height = height, width
        return Header("JPEG" if image.format == "MPO" else str(image.format), width, height)


def decode(picture: bytes, *, limits: Limits = LIMITS, alpha: bool = False) -> np.ndarray:
    """The upright picture as uint8 [H, W, 3], transparency laid on white; DataError if refused.

    With `alpha` a picture that has transparency is [H, W, 4] instead. CMYK, palettes and 16 bits
    become 8-bit RGB; colour profiles are not applied.
    """
    with _opened(picture, limits) as (image, orientation):
        image.load()
        mode = "RGBA" if alpha and image.has_transparency_data else "RGB"
        pixels = _pixels(image, mode)
    return np.ascontiguousarray(_upright(pixels, orientation))


def kind_of(start: bytes) -> str:
    """The name of the format that begins like this, or what it looks like."""
    for where, mark, name in MARKS:
        if start[where:].startswith(mark):
            return name
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if text.startswith((b"<svg", b"<?xml")):
        return "SVG or XML"
    return "unknown"


@contextmanager
def _opened(picture: bytes | BinaryIO, limits: Limits) -> Iterator[tuple[Image.Image, int]]:
    """The picture with its header checked, and its EXIF orientation (1 to 8)."""
    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    size = _checked_content(file, limits)
    try:
        # Whoever changes the filters restores those it found: two threads must not overlap.
        with _warning_filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=FORMATS)
            orientation = _orientation(image)
        with image:
            _check_header(image, size, limits)
            yield image, orientation
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"has more than {limits.pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise DataError("is damaged (its header cannot be read)") from None
    except MemoryError:
        raise DataError("needs more memory to be decoded than there is") from None
    except Exception as error:  # what decoders raise on broken files has no end
        raise DataError(f"is damaged ({_short(error)})") from error


def _checked_content(file: BinaryIO, limits: Limits) -> int:
    """The number of encoded bytes, when there are neither none nor too many, of a known format."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(64)
    file.seek(0)
    if not size:
        raise DataError("is an empty file")
    if size > limits.bytes:
        raise DataError(f"has {size:,} bytes; the most is {limits.bytes:,}")
    kind = kind_of(start)
    if kind not in FORMATS:
        raise DataError(f"is no PNG, JPEG or WebP picture; its content is {kind}")
    return size


def _check_header(image: Image.Image, size: int, limits: Limits) -> None:
    width, height = image.size
    shape = f"{width} x {height}"
    if width * height > limits.pixels:
        raise DataError(f"has {width * height:,} pixels ({shape}); the most is {limits.pixels:,}")
    if min(width, height) < limits.side:
        raise DataError(f"is {shape}; the shorter side must have {limits.side} pixels or more")
    if max(width, height) > limits.aspect * min(width, height):
        raise DataError(f"is {shape}; sides may differ {limits.aspect:g} times at most")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise DataError(f"is an animated {image.format}; save one frame of it")
    needed = size + width * height * _cost(image)
    if needed > limits.memory:
        raise DataError(
            f"is {shape} and needs {needed >> 20:,} MiB to be decoded; the most is "
            f"{limits.memory >> 20:,}: save it smaller, or as a PNG or baseline JPEG"
        )


def _cost(image: Image.Image) -> int:
    """Bytes a pixel at the peak: Pillow's own 4, and the result's or what the codec holds."""
    if image.format == "WEBP":
        return 17  # two canvases, the output and Pillow's copy of it
    if image.info.get("progressive"):
        return 4 + max(4, 2 * len(image.getbands()))  # all coefficients at 2 bytes
    return 8


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode the picture to look behind its pixels
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a broken EXIF block says nothing of the pixels
        return 1
    return value if value in range(1, 9) else 1


def _pixels(image: Image.Image, mode: str) -> np.ndarray:
    """The pixels as they are stored, uint8 [H, W, channels of the mode], converted in bands."""
    result = np.empty((image.height, image.width, len(mode)), dtype=np.uint8)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole = bottom - top == image.height
        band = image if whole else image.crop((0, top, image.width, bottom))
        result[top:bottom] = np.asarray(_converted(band, mode))
    return result


def _converted(band: Image.Image, mode: str) -> Image.Image:
    if band.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
        levels = np.asarray(band).clip(0, 65535) / 257
        band = Image.fromarray(levels.round().astype(np.uint8))
    if mode == "RGBA" or not band.has_transparency_data:
        return band if band.mode == mode else band.convert(mode)
    layer = band.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The EXIF orientation undone, as a view: 5 to 8 swap rows and columns first."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Decode untrusted images: encoded bytes to upright 8-bit pixels.

Used for training pictures and for those in a request (`pictures/input.py`); only the limits differ.

The format follows from the first bytes, not from the name. The header is checked before any pixel
is decoded; a refusal is a DataError whose message completes the sentence "this picture ...". Rows
are converted in bands, so that beside the decoder's memory only the result is held.
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
from opensana.pictures.orientation import SIDEWAYS, orientation_of

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
FORMATS = tuple(SUFFIXES)
BAND_PIXELS = 1 << 20
# (offset, bytes, name) of magic numbers; most are there only to name what is refused
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
Key = int | tuple[int, ...]


class TooManyPixelsError(DataError):
    """The picture has more pixels than allowed."""


@dataclass(frozen=True)
class Limits:
    """Limits on a picture's file size, pixels, decoding memory and shape."""

    bytes: int = 100 << 20
    pixels: int = 100_000_000
    memory: int = 850 << 20
    """Bytes for the file, the decoder and the result together."""
    side: int = 8
    """Minimum of the shorter side, in pixels."""
    aspect: float = 10.0
    """Maximum of the longer side over the shorter one."""
    animated: bool = False
    """Whether the first frame of an animation is read."""


LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """The format, and the size of the upright picture, known without decoding it."""

    format: str
    width: int
    height: int


def probe(picture: bytes | BinaryIO, *, limits: Limits = LIMITS) -> Header:
    """Format and size from the header alone; DataError if the header is refused."""
    with _opened(picture, limits) as (image, orientation):
        width, height = image.size
        if orientation in SIDEWAYS:
            width, height = height, width
        return Header("JPEG" if image.format == "MPO" else str(image.format), width, height)


def decode(picture: bytes, *, limits: Limits = LIMITS, alpha: bool = False) -> np.ndarray:
    """The upright picture as uint8 [H, W, 3], composited on white; DataError if refused.

    With `alpha` a picture with transparency is [H, W, 4] instead. CMYK, palettes and 16 bits become
    8-bit RGB; colour profiles are not applied.
    """
    with _opened(picture, limits) as (image, orientation):
        return _decoded(image, orientation, alpha=alpha)


def upright(image: Image.Image, *, alpha: bool = False) -> np.ndarray:
    """As `decode`, for a Pillow image, which is not changed."""
    with _faults():
        return _decoded(image, None, alpha=alpha)


def kind_of(start: bytes) -> str:
    """The format of a file that starts with these bytes."""
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
    """The picture with its header checked, and its orientation (1 to 8)."""
    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    size = _checked_content(file, limits)
    with _faults():
        # catch_warnings is not thread-safe: it restores the filters that it found.
        with _warning_filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(file, formats=FORMATS)
            except Image.DecompressionBombError:
                raise TooManyPixelsError(f"has more than {limits.pixels:,} pixels") from None
            orientation = orientation_of(image, file)
        with image:
            _check_header(image, size, limits)
            yield image, orientation


@contextmanager
def _faults() -> Iterator[None]:
    """Turn whatever a decoder raises into a DataError."""
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("is damaged (its header cannot be read)") from None
    except MemoryError:
        raise DataError("needs more memory to be decoded than there is") from None
    except Exception as error:  # decoders raise anything on damaged files
        short = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"is damaged ({short})") from error


def _checked_content(file: BinaryIO, limits: Limits) -> int:
    """The file's size in bytes; DataError if it is empty, too large or of an unknown format."""
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
        raise TooManyPixelsError(
            f"has {width * height:,} pixels ({shape}); the most is {limits.pixels:,}"
        )
    if min(width, height) < limits.side:
        raise DataError(f"is {shape}; the shorter side must have {limits.side} pixels or more")
    if max(width, height) > limits.aspect * min(width, height):
        raise DataError(f"is {shape}; sides may differ {limits.aspect:g} times at most")
    if getattr(image, "is_animated", False) and image.format != "MPO" and not limits.animated:
        raise DataError(f"is an animated {image.format}; save one frame of it")
    needed = size + width * height * _cost(image)
    if needed > limits.memory:
        raise DataError(
            f"is {shape} and needs {needed >> 20:,} MiB to be decoded; the most is "
            f"{limits.memory >> 20:,}: save it smaller, or as a PNG or baseline JPEG"
        )


def _cost(image: Image.Image) -> int:
    """Peak bytes per pixel: Pillow's 4, plus those of the result or the codec."""
    if image.format == "WEBP":
        return 17  # two canvases, the output and Pillow's copy of it
    if image.info.get("progressive"):
        return 4 + max(4, 2 * len(image.getbands()))  # all DCT coefficients, 2 bytes each
    return 8


def _decoded(image: Image.Image, orientation: int | None, *, alpha: bool) -> np.ndarray:
    key = _transparent_key(image)
    image.load()
    orientation = orientation or orientation_of(image)
    mode = "RGBA" if alpha and image.has_transparency_data else "RGB"
    return np.ascontiguousarray(_turned(_pixels(image, mode, key), orientation))


def _transparent_key(image: Image.Image) -> Key | None:
    """The transparent level or colour, on the scale of Pillow's pixels.

    Pillow converts 2, 4 and 16 bits to 8, but not the key. Of 16-bit colours only the upper 8 bits
    are compared.
    """
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple):
        return tuple(level >> 8 for level in key) if _raw_mode(image) == "RGB;16B" else key
    if not isinstance(key, int) or not image.mode.startswith(("1", "L", "I")):
        return None  # Pillow handles palettes and alpha channels itself
    if image.mode == "1":
        return 255 if key else 0
    most = {"L;2": 3, "L;4": 15}.get(_raw_mode(image), 255)
    return key * 255 // most if key <= most else key


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name of the file's pixel layout; empty once the picture is decoded."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def _pixels(image: Image.Image, mode: str, key: Key | None) -> np.ndarray:
    """The pixels as stored, uint8 [H, W, channels of the mode], converted in bands."""
    result = np.empty((image.height, image.width, len(mode)), dtype=np.uint8)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        all_rows = bottom - top == image.height
        band = image if all_rows else image.crop((0, top, image.width, bottom))
        layer = _layer(band, key)
        if layer.mode != mode and layer.mode == "RGBA":
            white = Image.new("RGBA", layer.size, "white")
            layer = Image.alpha_composite(white, layer)
        result[top:bottom] = np.asarray(layer if layer.mode == mode else layer.convert(mode))
    return result


def _layer(band: Image.Image, key: Key | None) -> Image.Image:
    """Any Pillow mode as RGB, or as RGBA if there is transparency."""
    if band.mode == "F":
        raise DataError("has floating-point pixels")
    levels: np.ndarray | None = None
    if band.mode.startswith("I"):  # Pillow would clip 16 bits to 8, not scale them
        levels = np.asarray(band).clip(0, 65535)
        band = Image.fromarray((levels / 257).round().astype(np.uint8))
    if key is None:
        band = band.convert("LA") if band.mode == "La" else band
        mode = "RGBA" if band.has_transparency_data else "RGB"
        return band if band.mode == mode else band.convert(mode)
    if levels is None:
        levels = np.asarray(band.convert("L") if band.mode == "1" else band)
    opaque = levels != np.asarray(key)
    opaque = opaque.any(axis=-1) if opaque.ndim == 3 else opaque
    layer = band.convert("RGB")
    layer.putalpha(Image.fromarray(np.where(opaque, np.uint8(255), np.uint8(0))))
    return layer


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the EXIF orientation, as a view; 5 to 8 swap rows and columns first."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels

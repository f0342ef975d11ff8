"""Pictures from outside: encoded bytes to upright 8-bit pixels, none of them trusted.

The one reader of training pictures and of those that a request brings (`pictures/input.py`), which
differ in their limits only.

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
from opensana.pictures.orientation import SIDEWAYS, orientation_of

SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
FORMATS = tuple(SUFFIXES)
BAND_PIXELS = 1 << 20
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
Key = int | tuple[int, ...]


class TooManyPixelsError(DataError):
    """More pixels than the limits allow."""


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
    animated: bool = False
    """Whether an animation is read, as its first frame."""


LIMITS = Limits()


@dataclass(frozen=True)
class Header:
    """What is known of a picture without decoding it; sizes are those of the upright picture."""

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
        return _decoded(image, orientation, alpha=alpha)


def upright(image: Image.Image, *, alpha: bool = False) -> np.ndarray:
    """What `decode` makes of a file, of a Pillow image; it stays as it is."""
    with _faults():
        return _decoded(image, None, alpha=alpha)


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
    """The picture with its header checked, and its orientation (1 to 8)."""
    file = io.BytesIO(picture) if isinstance(picture, bytes) else picture
    size = _checked_content(file, limits)
    with _faults():
        # Whoever changes the filters restores those it found: two threads must not overlap.
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
    """Whatever a decoder raises as one DataError."""
    try:
        yield
    except DataError:
        raise
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
    """Bytes a pixel at the peak: Pillow's own 4, and the result's or what the codec holds."""
    if image.format == "WEBP":
        return 17  # two canvases, the output and Pillow's copy of it
    if image.info.get("progressive"):
        return 4 + max(4, 2 * len(image.getbands()))  # all coefficients at 2 bytes
    return 8


def _decoded(image: Image.Image, orientation: int | None, *, alpha: bool) -> np.ndarray:
    key = _transparent_key(image)
    image.load()
    orientation = orientation or orientation_of(image)
    mode = "RGBA" if alpha and image.has_transparency_data else "RGB"
    return np.ascontiguousarray(_turned(_pixels(image, mode, key), orientation))


def _transparent_key(image: Image.Image) -> Key | None:
    """The level or colour that is transparent, on the scale of the pixels that Pillow gives.

    Pillow widens 2 and 4 bits to 8 and cuts 16-bit RGB to them, but not the key beside them.
    Colours of 16 bits are told apart by their upper 8.
    """
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple):
        return tuple(level >> 8 for level in key) if _raw_mode(image) == "RGB;16B" else key
    if not isinstance(key, int) or not image.mode.startswith(("1", "L", "I")):
        return None  # of palettes and alpha channels Pillow knows better
    if image.mode == "1":
        return 255 if key else 0
    most = {"L;2": 3, "L;4": 15}.get(_raw_mode(image), 255)
    return key * 255 // most if key <= most else key


def _raw_mode(image: Image.Image) -> str:
    """How the pixels of a picture lie in its file, while they are not decoded."""
    tiles = getattr(image, "tile", None)
    return str(tiles[0][3]) if tiles else ""


def _pixels(image: Image.Image, mode: str, key: Key | None) -> np.ndarray:
    """The pixels as they are stored, uint8 [H, W, channels of the mode], converted in bands."""
    result = np.empty((image.height, image.width, len(mode)), dtype=np.uint8)
    rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole = bottom - top == image.height
        band = image if whole else image.crop((0, top, image.width, bottom))
        layer = _layer(band, key)
        if layer.mode != mode and layer.mode == "RGBA":
            white = Image.new("RGBA", layer.size, "white")
            layer = Image.alpha_composite(white, layer)
        result[top:bottom] = np.asarray(layer if layer.mode == mode else layer.convert(mode))
    return result


def _layer(band: Image.Image, key: Key | None) -> Image.Image:
    """RGB, or RGBA where there is transparency, of any mode that Pillow has."""
    if band.mode == "F":
        raise DataError("has floating-point pixels")
    levels: np.ndarray | None = None
    if band.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
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
    """The orientation undone, as a view: 5 to 8 swap rows and columns first."""
    if orientation in SIDEWAYS:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

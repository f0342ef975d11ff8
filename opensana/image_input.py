"""Pictures from outside: a file, its bytes or a Pillow image to upright 8-bit RGB.

Nothing about the input is trusted. Bytes and pixels are limited before anything is decoded, only
three formats are opened whatever the file is called, and every fault is one RequestError.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from opensana.errors import RequestError
from opensana.request import LARGEST_SIZE

ImageSource = str | Path | bytes | Image.Image
"""A path, the content of a file, or a Pillow image."""

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_BYTES = 50 * 2**20
MOST_PIXELS = LARGEST_SIZE**2


def read_image(source: ImageSource, name: str = "image") -> Image.Image:
    """The picture as RGB: EXIF orientation applied, transparency laid on white, 16 bits made 8.

    `name` is what errors call it. Of an animation the first frame is taken.
    """
    what = f"{name} {str(source)!r}" if isinstance(source, str | Path) else f"the {name}"
    if isinstance(source, str | Path):
        source = _content(Path(source), what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _upright(_opened(source, what), what)
    except RequestError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _too_many_pixels(what) from None
    except UnidentifiedImageError:
        raise RequestError(f"{what} is no PNG, JPEG or WebP picture; save it as one") from None
    except Exception as error:  # what decoders raise on broken files has no end
        raise RequestError(f"{what} is damaged ({error}); save it anew") from error


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


def _opened(source: object, what: str) -> Image.Image:
    """The picture with its size known and checked, not yet decoded."""
    if isinstance(source, bytes):
        if len(source) > MOST_BYTES:
            raise _too_many_bytes(what)
        source = Image.open(io.BytesIO(source), formats=FORMATS)
    if not isinstance(source, Image.Image):
        raise RequestError(f"{what} must be a path, bytes or a Pillow image, got {source!r}")
    if not source.width * source.height:
        raise RequestError(f"{what} has no pixels ({source.width} x {source.height})")
    if source.width * source.height > MOST_PIXELS:
        raise _too_many_pixels(what)
    return source


def _upright(image: Image.Image, what: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise RequestError(f"{what} has floating-point pixels; convert it to 8 bits first")
    if image.mode.startswith("I"):  # Pillow would clip 16 bits to 8 instead of scaling them
        levels = np.asarray(image).clip(0, 65535) / 257
        image = Image.fromarray(levels.round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _too_many_bytes(what: str) -> RequestError:
    return RequestError(f"{what} is larger than {MOST_BYTES >> 20} MiB; save it smaller")


def _too_many_pixels(what: str) -> RequestError:
    return RequestError(
        f"{what} has too many pixels; the most is {LARGEST_SIZE} x {LARGEST_SIZE}, make it smaller"
    )

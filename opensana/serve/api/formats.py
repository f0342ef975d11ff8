"""A stored picture as PNG, JPEG or WebP; the A1111 text of its settings goes with each of them.

PNG carries it as the text chunk `parameters`, JPEG and WebP as EXIF's UserComment.
"""

import io
from typing import Literal, get_args

from PIL import Image

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)
MEDIA_TYPES: dict[Format, str] = {name: f"image/{name}" for name in FORMATS}
QUALITY = 100
"""OpenAI's default of `output_compression`."""
EXIF_IFD = 0x8769
USER_COMMENT = 0x9286
UNICODE = b"UNICODE\0"
"""The code in front of a comment in UTF-16."""


def encoded(png: bytes, format: Format, quality: int = QUALITY) -> bytes:
    """A PNG in another format; itself as PNG. `quality` is 0 to 100, at 100 WebP is lossless."""
    if format == "png":
        return png
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return save(image.convert("RGB"), format, quality, settings_of(image))


def save(image: Image.Image, format: Format, quality: int = QUALITY, settings: str = "") -> bytes:
    """The bytes of an image in a format."""
    buffer = io.BytesIO()
    if format == "png":
        image.save(buffer, format="PNG")
        return buffer.getvalue()
    exif = Image.Exif()
    if settings:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE + settings.encode("utf-16-be")
    if format == "jpeg":
        image.save(buffer, format="JPEG", quality=max(1, quality), exif=exif)
    else:
        image.save(buffer, format="WEBP", quality=quality, lossless=quality == 100, exif=exif)
    return buffer.getvalue()


def settings_of(image: Image.Image) -> str:
    """The A1111 text of an open picture, which may be anybody's; empty if it carries none."""
    text = image.info.get("parameters")
    if isinstance(text, str):
        return text
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if not isinstance(comment, bytes):
        return ""
    if comment.startswith(UNICODE):
        return comment[len(UNICODE) :].decode("utf-16-be", "replace")
    return comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace").strip("\0")

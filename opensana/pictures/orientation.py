"""A picture's orientation, read without decoding it: from EXIF, else from XMP."""

import io
import re
import zlib
from collections.abc import Callable
from typing import BinaryIO

from PIL import Image

UPRIGHT = 1
SIDEWAYS = (5, 6, 7, 8)
TAG = 0x0112
XMP = re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")
TAIL = 1 << 16  # bytes searched at a PNG's end: exiftool writes XMP after the pixels


def orientation_of(image: Image.Image, file: BinaryIO | None = None) -> int:
    """The EXIF orientation, 1 to 8; damaged or unknown metadata is ignored.

    `file` is the source of a picture that is not decoded yet.
    """
    # Not image.getexif(): for a PNG it would decode the pixels.
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    packet = packet.encode() if isinstance(packet, str) else packet
    found = _exif(lambda: Image.Image.getexif(image)) or _xmp(packet)
    if found is None and file is not None and image.format == "PNG":
        start = file.tell()
        file.seek(max(file.seek(0, io.SEEK_END) - TAIL, 0))
        tail = file.read(TAIL)
        file.seek(start)
        found = _exif(lambda: _parsed(_chunk(tail, b"eXIf")))
        found = found or _xmp(_chunk(tail, b"iTXtXML:com.adobe.xmp\0"))
    return found or UPRIGHT


def _exif(read: Callable[[], Image.Exif]) -> int | None:
    try:
        value = read().get(TAG)
    except Exception:  # Pillow raises anything on a damaged EXIF block
        return None
    return int(value) if value is not None and value in range(1, 9) else None


def _xmp(packet: bytes) -> int | None:
    found = XMP.search(packet)
    return int(found[1]) if found else None


def _parsed(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def _chunk(tail: bytes, start: bytes) -> bytes:
    """The last PNG chunk that starts like this, if its checksum is right."""
    at = tail.rfind(start)
    end = at + 4 + int.from_bytes(tail[max(at - 4, 0) : max(at, 0)], "big")
    chunk, check = tail[at:end], tail[end : end + 4]
    return chunk[4:] if at >= 4 and check == zlib.crc32(chunk).to_bytes(4, "big") else b""

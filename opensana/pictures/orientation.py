"""Which way up a picture is, known without decoding it: by EXIF, else by XMP."""

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
TAIL = 1 << 16  # bytes of a PNG's end that are looked at: exiftool writes XMP behind the pixels


def orientation_of(image: Image.Image, file: BinaryIO | None = None) -> int:
    """The orientation, 1 to 8 as EXIF counts them; what is broken or unknown says nothing.

    `file` is what a picture was opened from that is not decoded yet.
    """
    # Not image.getexif(): a PNG's own would decode the picture to look behind its pixels.
    found = _exif(lambda: Image.Image.getexif(image)) or _xmp(_packet(image))
    if found is None and file is not None and image.format == "PNG":
        found = _behind_pixels(file)
    return found or UPRIGHT


def _exif(read: Callable[[], Image.Exif]) -> int | None:
    try:
        value = read().get(TAG)
    except Exception:  # what a broken EXIF block raises has no end
        return None
    return int(value) if value is not None and value in range(1, 9) else None


def _xmp(packet: bytes) -> int | None:
    found = XMP.search(packet)
    return int(found[1]) if found else None


def _packet(image: Image.Image) -> bytes:
    packet = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    return packet.encode() if isinstance(packet, str) else packet


def _behind_pixels(file: BinaryIO) -> int | None:
    start = file.tell()
    file.seek(max(file.seek(0, io.SEEK_END) - TAIL, 0))
    tail = file.read(TAIL)
    file.seek(start)
    found = _exif(lambda: _parsed(_chunk(tail, b"eXIf")))
    return found or _xmp(_chunk(tail, b"iTXtXML:com.adobe.xmp\0"))


def _parsed(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def _chunk(tail: bytes, start: bytes) -> bytes:
    """The last PNG chunk that begins like this; its checksum tells it from pixels."""
    at = tail.rfind(start)
    end = at + 4 + int.from_bytes(tail[max(at - 4, 0) : max(at, 0)], "big")
    whole, check = tail[at:end], tail[end : end + 4]
    return whole[4:] if at >= 4 and check == zlib.crc32(whole).to_bytes(4, "big") else b""

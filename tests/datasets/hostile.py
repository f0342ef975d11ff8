"""Pictures that are wrong, odd or hostile, made on the fly."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (48, 40)


def plain(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture whose pixels all differ a little."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    pixels = np.stack([rows * 5 % 256, columns * 5 % 256, (rows + columns) % 256], -1)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """A PNG put together by hand: 8-bit grey, whatever its header claims."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def animated(form: str) -> bytes:
    frames = [plain(), plain().rotate(90), plain().rotate(180)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=50)


def sixteen_bits() -> bytes:
    levels = np.linspace(0, 65535, SIZE[0] * SIZE[1]).astype(np.uint16)
    return encoded(Image.fromarray(levels.reshape(SIZE[1], SIZE[0])))


def palette_with_alpha() -> bytes:
    image = plain().quantize(16)
    return encoded(image, transparency=bytes(range(0, 256, 16)))


def long_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 500_000)
    return encoded(plain(), pnginfo=info)


@cache
def packed_zeros() -> bytes:
    """128 MiB in 128 KiB."""
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(128)) + packer.flush()


def text_bomb() -> bytes:
    return png(*SIZE, chunk(b"zTXt", b"Comment\0\0" + packed_zeros()), rows=bytes(49 * 40))


def profile_bomb() -> bytes:
    return png(*SIZE, chunk(b"iCCP", b"profile\0\0" + packed_zeros()), rows=bytes(49 * 40))


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="40" height="40"/></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\nshowpage\n"
FITS = b"SIMPLE  =                    T / file conforms".ljust(2880)
HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


@cache
def good() -> dict[str, bytes]:
    """Odd pictures that must all be used."""
    return {
        "cmyk.jpg": encoded(plain("CMYK"), "JPEG"),
        "sixteen.png": sixteen_bits(),
        "palette.png": palette_with_alpha(),
        "turned.jpg": encoded(plain(), "JPEG", exif=orientation(6)),
        "broken_profile.jpg": encoded(plain(), "JPEG", icc_profile=b"no profile at all"),
        "broken_exif.jpg": encoded(plain(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffjunk"),
        "long_text.png": long_text(),
        "grey_alpha.png": encoded(plain().convert("LA")),
        "one_bit.png": encoded(plain("1")),
        "progressive.jpg": encoded(plain(), "JPEG", progressive=True),
        "interlaced_name.jpeg": encoded(plain(), "JPEG"),
        "lossless.webp": encoded(plain("RGBA"), "WEBP", lossless=True),
        "really_a_jpeg.png": encoded(plain(), "JPEG"),
        "sn\u00f6 \u96ea \U0001f34e.png": encoded(plain()),
        "new\nline.png": encoded(plain()),
        "UPPER.PNG": encoded(plain()),
    }


@cache
def bad() -> dict[str, tuple[bytes, str]]:
    """Pictures whose header shows that they cannot be used, and what must be said of them."""
    return {
        "empty.png": (b"", "empty file"),
        "bomb.png": (png(50_000, 50_000), "pixels"),
        "large.png": (png(12_000, 12_000), "pixels"),
        "zero.png": (png(0, 40), "damaged"),
        "animation.gif": (animated("GIF"), "GIF"),
        "animation.png": (animated("PNG"), "animated PNG"),
        "animation.webp": (animated("WEBP"), "animated WEBP"),
        "tiff.png": (encoded(plain(), "TIFF"), "TIFF"),
        "vector.svg": (SVG, "SVG"),
        "postscript.eps": (EPS, "EPS"),
        "stars.fits": (FITS, "FITS"),
        "page.jpg": (HTML, "HTML"),
        "dot.png": (encoded(plain(size=(1, 1))), "shorter side"),
        "ribbon.png": (encoded(plain(size=(400, 20))), "10 times"),
        "text_bomb.png": (text_bomb(), "damaged"),
        "noise.jpg": (bytes(range(256)) * 4, "unknown"),
        "head_only.jpg": (encoded(plain(), "JPEG")[:40], "damaged"),
        "memory.webp": (webp_header(9000, 9000), "damaged|MiB"),
    }


@cache
def damaged() -> dict[str, bytes]:
    """Good headers before broken pixels: found only by decoding."""
    checked = encoded(plain())
    return {
        "cut.jpg": encoded(plain(size=(480, 400)), "JPEG")[:3000],
        "cut.png": checked[: len(checked) // 2],
        "wrong_sum.png": png(48, 40, rows=b"\5" * 30),
        "cut.webp": encoded(plain(size=(480, 400)), "WEBP")[:-300],
    }


def webp_header(width: int, height: int) -> bytes:
    """An extended WebP of a claimed size without pixels."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def write(folder: Path, pictures: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)

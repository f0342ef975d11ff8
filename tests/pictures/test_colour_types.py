"""One reader for every colour type, depth, transparency and orientation: against a plain one.

The files are put together by hand, and what they must become is computed from their samples.

Also tests `pictures/orientation.py`.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from opensana.pictures.decode import Limits, decode, probe
from opensana.pictures.input import read_image, read_layer
from tests.datasets.hostile import chunk, encoded, orientation

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGBA: (8, 16),
}
LIMITS = Limits(side=1, aspect=99)
KINDS = [
    (colour, depth, transparent)
    for colour, depths in DEPTHS.items()
    for depth in depths
    for transparent in ((False, True) if colour in (GREY, RGB, PALETTE) else (True,))
]


@dataclass(frozen=True)
class Sample:
    """A PNG, and the colour and alpha that it means, each from 0 to 1."""

    content: bytes
    colour: np.ndarray
    alpha: np.ndarray


def png(samples: np.ndarray, depth: int, colour: int, *chunks: bytes, late: bytes = b"") -> bytes:
    height, width, channels = samples.shape
    lines = [
        b"\0" + packed(line, depth)
        for line in samples.reshape(height, width * channels).astype(int)
    ]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(lines)))
    end = late + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + pixels + end


def packed(line: np.ndarray, depth: int) -> bytes:
    bits = (line[:, None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def drawn(colour: int, depth: int, *, transparent: bool, seed: int, **place: bytes) -> Sample:
    """A picture of random samples, some of them the transparent one."""
    generator = np.random.default_rng([colour, depth, transparent, seed])
    height, width = generator.integers(1, 12, size=2)
    most = 2**depth - 1
    if colour == PALETTE:
        return palette(generator, (height, width), depth, transparent=transparent, **place)
    samples = generator.integers(most + 1, size=(height, width, CHANNELS[colour]))
    if depth == 16 and colour != GREY:
        samples = samples // 256 * 257  # Pillow reads their upper half only
    samples[generator.random((height, width)) < 0.3] = samples[0, 0]
    whole = samples / most
    if colour in (GREY_ALPHA, RGBA):
        return Sample(png(samples, depth, colour, **place), whole[..., :-1], whole[..., -1])
    if not transparent:
        return Sample(png(samples, depth, colour, **place), whole, np.ones((height, width)))
    key = samples[0, 0]
    content = png(samples, depth, colour, chunk(b"tRNS", key.astype(">u2").tobytes()), **place)
    return Sample(content, whole, (samples != key).any(axis=-1).astype(float))


def palette(
    generator: np.random.Generator,
    shape: tuple[int, int],
    depth: int,
    *,
    transparent: bool,
    **place: bytes,
) -> Sample:
    indices = generator.integers(2**depth, size=(*shape, 1))
    colours = generator.integers(256, size=(2**depth, 3), dtype=np.uint8)
    alphas = np.full(2**depth, 255, np.uint8)
    chunks = [chunk(b"PLTE", colours.tobytes())]
    if transparent:
        alphas[: 1 + len(alphas) // 2] = generator.integers(256, size=1 + len(alphas) // 2)
        chunks.append(chunk(b"tRNS", alphas[: 1 + len(alphas) // 2].tobytes()))
    content = png(indices, depth, PALETTE, *chunks, **place)
    return Sample(content, colours[indices[..., 0]] / 255, alphas[indices[..., 0]] / 255)


def on_white(sample: Sample) -> np.ndarray:
    alpha = sample.alpha[..., None]
    laid = sample.colour * alpha + (1 - alpha)
    return 255 * np.broadcast_to(laid, (*laid.shape[:2], 3))


def turned(pixels: np.ndarray, value: int) -> np.ndarray:
    """Pixel by pixel, from the words of the EXIF standard."""
    height, width = pixels.shape[:2]
    shape = (width, height) if value > 4 else (height, width)
    result = np.empty((*shape, *pixels.shape[2:]), pixels.dtype)
    for row in range(height):
        for column in range(width):
            below, right = height - 1 - row, width - 1 - column
            place = {
                1: (row, column),
                2: (row, right),
                3: (below, right),
                4: (below, column),
                5: (column, row),
                6: (column, below),
                7: (right, below),
                8: (right, row),
            }[value]
            result[place] = pixels[row, column]
    return result


def same_everywhere(content: bytes, expected: np.ndarray, *, tolerance: float) -> None:
    """Both readers, and a Pillow image of the same content, give the expected pixels."""
    header = probe(content, limits=LIMITS)
    assert (header.height, header.width) == expected.shape[:2]
    ours = decode(content, limits=LIMITS)
    assert np.abs(ours - expected).max() <= tolerance
    for source in (content, Image.open(io.BytesIO(content))):
        assert np.array_equal(np.asarray(read_image(source)), ours)


@pytest.mark.parametrize(("colour", "depth", "transparent"), KINDS)
def test_every_colour_type_and_depth(colour: int, depth: int, transparent: bool) -> None:
    for seed in range(12):
        sample = drawn(colour, depth, transparent=transparent, seed=seed)
        same_everywhere(sample.content, on_white(sample), tolerance=1.01)
        layer = read_layer(sample.content)
        assert np.array_equal(layer, decode(sample.content, limits=LIMITS, alpha=True))
        assert layer.shape[2] == (4 if transparent else 3)
        assert np.abs(layer[..., :3] - 255 * sample.colour).max() <= 1
        if transparent:
            assert np.abs(layer[..., 3] - 255 * sample.alpha).max() <= 1


@pytest.mark.parametrize("depth", DEPTHS[GREY])
def test_the_transparent_level_of_grey_becomes_white(depth: int) -> None:
    most = 2**depth - 1
    for key in (0, 1, most):
        samples = np.array([[[0], [1], [most]]])
        content = png(samples, depth, GREY, chunk(b"tRNS", struct.pack(">H", key)))
        expected = [255 if level == key else round(255 * level / most) for level in (0, 1, most)]
        assert np.asarray(read_image(content))[0, :, 0].tolist() == expected
        assert decode(content, limits=LIMITS)[0, :, 0].tolist() == expected


# ------------------------------------------------------------------ orientation


def xmp(value: int, form: str = '<x tiff:Orientation="{}"/>') -> bytes:
    return form.format(value).encode()


def xmp_chunk(value: int) -> bytes:
    return chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(value))


def carriers(value: int) -> Iterator[tuple[str, bytes, float]]:
    """The same picture with its orientation wherever files keep it, and how exact each is."""
    block = orientation(value).tobytes()
    raw = block.removeprefix(b"Exif\0\0")
    picture = Image.fromarray(PIXELS)
    samples, flat = PIXELS.astype(int), {"quality": 100, "subsampling": 0}
    yield "EXIF, PNG", png(samples, 8, RGB, chunk(b"eXIf", raw)), 0
    yield "EXIF behind the pixels", png(samples, 8, RGB, late=chunk(b"eXIf", raw)), 0
    yield "XMP, PNG", png(samples, 8, RGB, xmp_chunk(value)), 0
    yield "XMP behind the pixels", png(samples, 8, RGB, late=xmp_chunk(value)), 0
    yield "EXIF, JPEG", encoded(picture, "JPEG", exif=block, **flat), 3
    yield "XMP, JPEG", encoded(picture, "JPEG", xmp=xmp(value), **flat), 3
    yield "EXIF, WebP", encoded(picture, "WEBP", lossless=True, exif=block), 0
    yield "XMP, WebP", encoded(picture, "WEBP", lossless=True, xmp=xmp(value)), 0
    yield "EXIF before XMP", encoded(picture, exif=block, xmp=xmp(value % 8 + 1)), 0
    broken = encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff", xmp=xmp(value), **flat)
    yield "XMP beside a broken EXIF", broken, 3


PIXELS = np.random.default_rng(8).integers(256, size=(3, 5, 3), dtype=np.uint8) // 32 * 32
PIXELS = np.kron(PIXELS, np.ones((16, 16, 1), np.uint8))  # JPEG keeps blocks


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_wherever_it_is_kept(value: int) -> None:
    expected = turned(PIXELS, value).astype(int)
    for name, content, tolerance in carriers(value):
        header = probe(content)
        assert (header.height, header.width) == expected.shape[:2], name
        assert np.abs(decode(content) - expected).max() <= tolerance, name
        for source in (content, Image.open(io.BytesIO(content))):
            assert np.array_equal(np.asarray(read_image(source)), decode(content)), name


@pytest.mark.parametrize(
    "form",
    ["<x tiff:Orientation='{}'/>", "<tiff:Orientation> {} </tiff:Orientation>"],
)
def test_every_spelling_of_xmp(form: str) -> None:
    content = encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, xmp=xmp(6, form))
    assert np.array_equal(decode(content), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("value", [0, 9])
def test_an_orientation_that_is_none_is_upright(value: int) -> None:
    content = encoded(Image.fromarray(PIXELS), xmp=xmp(value))
    assert np.array_equal(decode(content), PIXELS)
    assert np.array_equal(np.asarray(read_image(content)), PIXELS)


def test_pixels_that_look_like_a_chunk_are_none() -> None:
    fake = chunk(b"eXIf", orientation(6).tobytes().removeprefix(b"Exif\0\0"))[:-1] + b"?"
    samples = np.zeros((40, 40, 3), int)
    content = png(samples, 8, RGB, late=chunk(b"teSt", fake))
    assert probe(content).width == 40
    assert np.array_equal(decode(content), samples)


def test_transparency_and_orientation_together() -> None:
    for colour, depth, transparent in KINDS:
        sample = drawn(colour, depth, transparent=transparent, seed=7, late=xmp_chunk(6))
        expected = turned(on_white(sample), 6)
        same_everywhere(sample.content, expected, tolerance=1.01)


@pytest.mark.parametrize("flags", [{}, {"progressive": True}])
def test_cmyk(flags: dict) -> None:
    levels = np.random.default_rng(5).integers(256, size=(2, 3, 4), dtype=np.uint8)
    inks = np.kron(levels, np.ones((16, 16, 1), np.uint8))
    content = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0, **flags)
    colour = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    same_everywhere(content, colour, tolerance=4)

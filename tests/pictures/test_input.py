"""Pictures from outside: every kind that people have, and every kind that attackers have."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensana.errors import RequestError
from opensana.pictures import input as image_input
from opensana.pictures.input import read_image

LEVELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
RGB = Image.fromarray(LEVELS)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: image_input.ImageSource) -> np.ndarray:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, data: bytes = b"") -> bytes:
    """A PNG file by hand: a header of any size, further chunks, and the data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + chunk(b"IEND", b"")


# ------------------------------------------------------------------ what people have


def test_path_text_bytes_and_image_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "name with \N{RED APPLE}\nand a line.png"
    path.write_bytes(encoded(RGB))
    for source in (path, str(path), path.read_bytes(), RGB, Image.open(path)):
        assert np.array_equal(pixels(source), LEVELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_other_formats(kind: str) -> None:
    grey = Image.new("RGB", (40, 30), (90, 120, 30))
    assert np.abs(pixels(encoded(grey, kind)).astype(int) - (90, 120, 30)).max() <= 4


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    assert np.array_equal(pixels(encoded(RGB, exif=exif)), np.rot90(LEVELS, -1))


def test_transparency_is_laid_on_white() -> None:
    layer = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    layer.putpixel((1, 0), (200, 0, 0, 0))
    layer.putpixel((2, 0), (200, 0, 0, 128))
    found = pixels(encoded(layer))[0].tolist()
    assert found[:2] == [[200, 0, 0], [255, 255, 255]]
    assert np.abs(np.array(found[2]) - (227, 127, 127)).max() <= 1


def test_palettes_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    found = pixels(encoded(palette, transparency=1))
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_16_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert pixels(encoded(grey))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    white = Image.new("RGB", (3, 2), "white").convert(mode)
    assert (pixels(encoded(white, "JPEG" if mode == "CMYK" else "PNG")) == 255).all()


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP"):
        file = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert pixels(file)[0, 0, 0] > 200


def test_a_broken_colour_profile_does_no_harm() -> None:
    assert np.array_equal(pixels(encoded(RGB, icc_profile=b"no profile")), LEVELS)


def test_the_given_image_stays_as_it_is() -> None:
    layer = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    read_image(layer)
    assert layer.mode == "RGBA"


# ------------------------------------------------------------------ what attackers have


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no PNG, JPEG or WebP picture"),
        (b"<html>", "no PNG, JPEG or WebP picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no PNG, JPEG or WebP picture"),
        (encoded(RGB, "GIF"), "no PNG, JPEG or WebP picture"),
        (encoded(RGB, "TIFF"), "no PNG, JPEG or WebP picture"),
        (encoded(RGB)[:-30], "is damaged"),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:-99], "is damaged"),
        (encoded(Image.new("RGB", (99, 99)), "WEBP")[:-9], "is damaged|no PNG"),
        (png(4, 4, data=b"\x07" * 52), "is damaged"),
        (png(4, 4, data=b""), "is damaged"),
        (png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9 * 2**20)))), "is damaged"),
        (png(0, 4), "no PNG|no pixels|is damaged"),
    ],
)  # fmt: skip
def test_hostile_bytes_are_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "evil.png").write_bytes(content)
    for source, name in ((content, "the image"), (tmp_path / "evil.png", "evil.png'")):
        with pytest.raises(RequestError, match=message) as caught:
            read_image(source)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("side", [8193, 10_000, 50_000, 2**31 - 1])
def test_bombs_are_refused_before_they_are_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(RequestError, match="the image has too many pixels; the most is 8192 x"):
        read_image(png(side, side))
    with pytest.raises(RequestError, match="decoded"):
        read_image(png(8192, 8192))


def test_every_cut_of_a_file_is_refused_or_read() -> None:
    for kind in image_input.FORMATS:
        whole = encoded(RGB, kind)
        for length in range(len(whole)):
            try:
                assert pixels(whole[:length]).shape == LEVELS.shape
            except RequestError:
                continue


def test_flipped_bytes_are_refused_or_read() -> None:
    generator = np.random.default_rng(1)
    for kind in image_input.FORMATS:
        whole = np.frombuffer(encoded(RGB, kind), np.uint8)
        for _ in range(200):
            broken = whole.copy()
            broken[generator.integers(len(broken), size=3)] = generator.integers(256, size=3)
            try:
                read_image(broken.tobytes())
            except RequestError:
                continue


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "MOST_BYTES", 2**20)
    with pytest.raises(RequestError, match="the image is larger than 1 MiB"):
        read_image(encoded(RGB).ljust(2**20 + 1, b"\0"))
    with (tmp_path / "large.png").open("wb") as file:
        file.write(encoded(RGB))
        file.truncate(2**40)
    with pytest.raises(RequestError, match=r"large\.png' is larger than 1 MiB"):
        read_image(tmp_path / "large.png")
    (tmp_path / "most.png").write_bytes(encoded(RGB).ljust(2**20, b"\0"))
    assert np.array_equal(pixels(tmp_path / "most.png"), LEVELS)


def test_an_image_object_has_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_input, "MOST_PIXELS", 23)
    with pytest.raises(RequestError, match="too many pixels"):
        read_image(RGB)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.png", "there is no image 'missing.png'"),
        ("a\0b.png", "image"),
        ("", "is not a file"),
        (".", "is not a file"),
        (os.devnull, "is not a file"),
        (7, "a path, bytes or a Pillow image, got 7"),
        (None, "got None"),
        (Image.new("RGB", (0, 3)), "no pixels"),
        (Image.new("F", (3, 3)), "floating-point"),
    ],
)
def test_what_is_no_picture_is_refused(source, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_image(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match="is not a file"):
        read_image(tmp_path / "pipe.png")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    with pytest.raises(RequestError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_the_name_is_that_of_the_field() -> None:
    with pytest.raises(RequestError, match=r"^the mask is no PNG"):
        read_image(b"x", "mask")

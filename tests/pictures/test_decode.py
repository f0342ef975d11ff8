"""Decoding: upright 8-bit RGB from whatever is allowed, one precise reason for all else."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from opensana.errors import DataError
from opensana.pictures.decode import Header, Limits, decode, kind_of, probe
from tests.datasets import hostile
from tests.datasets.hostile import encoded, orientation, plain
from tests.datasets.measured import run

HEIGHT, WIDTH = 40, 48


@pytest.mark.parametrize("name", hostile.good())
def test_odd_pictures_are_decoded(name: str) -> None:
    content = hostile.good()[name]
    header, pixels = probe(content), decode(content)
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert pixels.shape == (header.height, header.width, 3)
    assert probe(io.BytesIO(content)) == header


@pytest.mark.parametrize("name", hostile.bad())
def test_a_bad_header_is_refused_with_its_reason(name: str) -> None:
    content, reason = hostile.bad()[name]
    for read in (probe, decode):
        with pytest.raises(DataError, match=reason) as caught:
            read(content)
        assert " at 0x" not in str(caught.value)  # the same words every time


@pytest.mark.parametrize("name", hostile.damaged())
def test_damaged_pixels_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="is damaged"):
        decode(hostile.damaged()[name])


def test_a_compressed_profile_does_not_unpack() -> None:
    with pytest.raises(DataError, match="damaged"):
        decode(hostile.profile_bomb())


@pytest.mark.parametrize("value", range(1, 9))
def test_the_orientation_is_undone(value: int) -> None:
    content = encoded(plain(), exif=orientation(value))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(decode(content), np.asarray(expected))
    assert probe(content) == Header("PNG", *expected.size)


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_unknown_orientation_is_upright(value: int) -> None:
    content = encoded(plain(), exif=orientation(value))
    assert np.array_equal(decode(content), np.asarray(plain()))


def test_sixteen_bits_are_scaled() -> None:
    grey = decode(hostile.sixteen_bits())[..., 0].ravel().astype(float)
    assert np.abs(grey - np.linspace(0, 255, WIDTH * HEIGHT)).max() <= 1


def test_cmyk_stays_the_picture_it_was() -> None:
    difference = decode(encoded(plain("CMYK"), "JPEG", quality=100)) - np.asarray(plain("RGB"), int)
    assert np.abs(difference).mean() < 4


def test_transparency_is_laid_on_white_or_kept() -> None:
    image = plain("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    pixels = np.asarray(image).astype(float)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(decode(encoded(image)) - expected).max() <= 1
    assert np.array_equal(decode(encoded(image), alpha=True), np.asarray(image))
    assert decode(encoded(plain()), alpha=True).shape == (HEIGHT, WIDTH, 3)


def test_bands_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    content = hostile.palette_with_alpha()
    whole = decode(content)
    monkeypatch.setattr("opensana.pictures.decode.BAND_PIXELS", 100)
    assert np.array_equal(decode(content), whole)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(bytes=100), "bytes; the most is 100"),
        (Limits(pixels=1919), "has 1,920 pixels"),
        (Limits(side=41), "shorter side must have 41"),
        (Limits(aspect=1.1), r"1\.1 times at most"),
        (Limits(memory=15_000), "to be decoded"),
    ],
)
def test_limits(limits: Limits, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        probe(encoded(plain()), limits=limits)


def test_nothing_is_decoded_that_the_header_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoded(BaseException):
        """Not an Exception, which would count as damage."""

    def never(*_: object) -> None:
        raise Decoded

    turned = encoded(plain(), exif=orientation(6))
    contents = [content for content, _ in hostile.bad().values()]
    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    for content in contents:
        with pytest.raises(DataError):
            decode(content)
    probe(turned)
    with pytest.raises(Decoded):
        decode(turned)


def test_no_warning_escapes() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decode(hostile.good()["broken_exif.jpg"])
        with pytest.raises(DataError):
            decode(hostile.png(10_000, 9_900))  # Pillow warns of a bomb here
    assert not caught


def test_a_picture_of_several_is_its_first() -> None:
    content = encoded(plain(), "MPO", save_all=True, append_images=[plain("L").convert("RGB")])
    assert probe(content) == Header("JPEG", WIDTH, HEIGHT)
    assert decode(content).shape == (HEIGHT, WIDTH, 3)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["PNG", "JPEG", "progressive", "CMYK", "WEBP", "turned"])
def test_the_largest_pictures_stay_below_a_gibibyte(tmp_path: Path, form: str) -> None:
    """The largest square that the limits let through, decoded in a process of its own."""
    cost = {"progressive": 10, "CMYK": 12, "WEBP": 17}.get(form, 8)
    side = min(int((820 * 2**20 / cost) ** 0.5), 10_000) // 64 * 64
    image = Image.new("CMYK" if form == "CMYK" else "RGB", (side, side), 77)
    options: dict[str, object] = {"progressive": form in ("progressive", "CMYK")}
    if form == "turned":
        options = {"exif": orientation(6)}
    saved = form if form in ("PNG", "WEBP") else "JPEG"
    (tmp_path / "large.png").write_bytes(encoded(image, saved, **options))
    done = run("data", "inspect", tmp_path, "--full", "--json", seconds=120)
    assert json.loads(done.out)["pictures"] == 1, done.out
    assert done.peak < 1 << 30, done.peak


@pytest.mark.parametrize(("start", "kind"), [(b"BM", "BMP"), (b"", "unknown"), (b"\n<svg", "SVG")])
def test_kinds(start: bytes, kind: str) -> None:
    assert kind_of(start).startswith(kind)

"""The picture that an edit starts from: its size, its mask on the grid, its edge, its digest."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from opensana.drawing.init_image import FEATHER, InitImage, read_init_image
from opensana.errors import RequestError

GENERATOR = np.random.default_rng(4)


def painted(width: int, height: int) -> Image.Image:
    return Image.fromarray(GENERATOR.integers(256, size=(height, width, 3), dtype=np.uint8))


def masked(width: int, height: int, *boxes: Sequence[int]) -> Image.Image:
    """Black with white boxes (left, top, right, bottom)."""
    mask = Image.new("L", (width, height), 0)
    for left, top, right, bottom in boxes:
        mask.paste(255, (left, top, right, bottom))
    return mask


def original(image: Image.Image, mask: Image.Image | None = None) -> InitImage:
    return read_init_image(image, mask, lambda _: None)


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("size", "fields", "unit", "expected"),
    [
        ((256, 128), {}, 32, (256, 128)),
        ((250, 100), {}, 32, (256, 96)),
        ((1, 1), {}, 32, (32, 32)),
        ((20_000, 40), {}, 32, (8192, 32)),
        ((250, 100), {}, 64, (256, 128)),
        ((250, 100), {}, 8, (256, 96)),
        ((400, 200), {"width": 128}, 32, (128, 64)),
        ((400, 200), {"height": 320}, 32, (640, 320)),
        ((400, 200), {"width": 96, "height": 96}, 32, (96, 96)),
    ],
)
def test_the_size_is_the_pictures(
    size: tuple[int, int], fields: dict, unit: int, expected: tuple[int, int]
) -> None:
    image = original(Image.new("RGB", size))
    assert image.size_for(fields.get("width"), fields.get("height"), unit) == expected


def test_strength_depends_on_the_mask() -> None:
    plain, mask = painted(64, 64), masked(64, 64, (0, 0, 9, 9))
    assert original(plain).default_strength == 0.6
    assert original(plain, mask).default_strength == 1.0


def test_a_picture_that_fits_is_not_touched() -> None:
    image = painted(64, 96)
    assert np.array_equal(np.asarray(original(image).resized(64, 96).image), np.asarray(image))


def test_another_shape_is_covered_and_cut_about_the_centre() -> None:
    columns = np.repeat(np.arange(300) // 3, 100).reshape(300, 100).T.astype(np.uint8)
    image = Image.fromarray(columns).convert("RGB")  # 300 x 100, dark to light from left to right
    mask = masked(300, 100, (100, 0, 110, 100))
    fitted = original(image, mask).resized(96, 96)
    levels = np.asarray(fitted.image)[48, :, 0]
    assert levels[0] == pytest.approx(100 / 3, abs=1)
    assert levels[-1] == pytest.approx(200 / 3, abs=1)
    assert fitted.mask is not None
    white = np.asarray(fitted.mask)
    assert white.shape == (96, 96)
    assert (white[:, :10] == 255).all()
    assert (white[:, 11:] == 0).all()


def test_white_survives_any_scaling() -> None:
    for size in ((64, 64), (992, 960), (32, 32)):
        fitted = original(painted(900, 900), masked(900, 900, (450, 450, 451, 451)))
        mask = fitted.resized(*size).mask
        assert mask is not None
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_a_mask_that_is_cut_away_is_refused() -> None:
    wide = original(painted(300, 100), masked(300, 100, (0, 0, 9, 9)))
    with pytest.raises(RequestError, match="black on the whole picture"):
        wide.resized(96, 96)


def test_a_change_of_shape_is_told() -> None:
    image = original(painted(250, 100))
    assert list(image.resize_notes(250, 100, native=128)) == []
    [note] = image.resize_notes(256, 96, native=128)
    assert note == "the image of 250 x 100 pixels was scaled and cut to 256 x 96"
    [note] = image.resize_notes(500, 200, native=256)
    assert note == "the image of 250 x 100 pixels was scaled to 500 x 200"
    [_, note] = image.resize_notes(1024, 1024, native=256)
    assert "1024 x 1024 pixels are far more than the 256 x 256" in note


# ------------------------------------------------------------------ masks


def test_a_cell_with_any_white_is_drawn_anew() -> None:
    mask = masked(128, 64, (31, 0, 33, 1), (127, 63, 128, 64))
    cells = original(painted(128, 64), mask).cells(32)
    assert cells is not None
    assert cells.tolist() == [[True, True, False, False], [False, False, False, True]]
    assert original(painted(64, 64)).cells(32) is None


def blend(mask: Image.Image) -> np.ndarray:
    return np.asarray(original(painted(*mask.size), mask).blend)


def test_the_edge_is_blended_inside_the_mask_only() -> None:
    mask = masked(64, 64, (20, 0, 64, 64))
    row = blend(mask)[32]
    steps = (255 * np.arange(1, FEATHER + 1) / FEATHER).round()
    assert (row[:20] == 0).all()
    assert row[20 : 20 + FEATHER].tolist() == steps.tolist()
    assert (row[20 + FEATHER :] == 255).all(), "the picture's own border is no edge of the mask"
    assert (blend(mask)[[0, -1]] == row).all()


@pytest.mark.parametrize("width", [1, 2, 3, 8])
def test_a_thin_stroke_is_drawn_anew_too(width: int) -> None:
    row = blend(masked(64, 64, (30, 0, 30 + width, 64)))[32]
    assert row[30 : 30 + width].max() == 255
    assert (np.delete(row, range(30, 30 + width)) == 0).all()


def test_pasting_keeps_every_bit_outside_the_mask() -> None:
    image, drawn = painted(64, 64), painted(64, 64)
    mask = masked(64, 64, (8, 8, 50, 40), (60, 60, 64, 64))
    pasted = np.asarray(original(image, mask).paste(drawn))
    black = np.asarray(mask) == 0
    assert np.array_equal(pasted[black], np.asarray(image)[black])
    assert np.array_equal(pasted[20:25, 20:30], np.asarray(drawn)[20:25, 20:30])
    assert np.array_equal(np.asarray(original(image).paste(drawn)), np.asarray(drawn))


def test_the_light_half_of_a_mask_is_white() -> None:
    levels = Image.fromarray(np.array([[0, 9, 127, 128, 200, 255]], np.uint8))
    mask = original(painted(6, 1), levels).mask
    assert mask is not None
    assert np.asarray(mask).tolist() == [[0, 0, 0, 255, 255, 255]]
    clear = Image.new("RGBA", (6, 1), (0, 0, 0, 255))
    clear.putpixel((2, 0), (0, 0, 0, 0))  # transparent is white
    mask = original(painted(6, 1), clear).mask
    assert mask is not None
    assert np.flatnonzero(np.asarray(mask)).tolist() == [2]


# ------------------------------------------------------------------ digests, refusals


def test_the_digest_is_of_the_pixels() -> None:
    image, mask = painted(32, 64), masked(32, 64, (0, 0, 9, 9))
    digests = original(image, mask).provenance
    assert digests.keys() == {"image_sha256", "mask_sha256"}
    assert original(image.convert("RGBA"), mask.convert("RGB")).provenance == digests
    assert original(image).provenance == {"image_sha256": digests["image_sha256"]}
    changed = image.copy()
    changed.putpixel((31, 63), (1, 2, 3))
    assert original(changed).provenance["image_sha256"] != digests["image_sha256"]
    turned = Image.frombytes("RGB", (64, 32), image.tobytes())
    assert original(turned).provenance["image_sha256"] != digests["image_sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image": painted(8, 8), "mask": masked(8, 9, (0, 0, 1, 1))},
            "the mask has 8 x 9 pixels, its image 8 x 8",
        ),
        ({"image": painted(8, 8), "mask": masked(8, 8)}, "black on the whole picture"),
        ({"image": painted(8, 8), "mask": b"x"}, "the mask is no PNG"),
        ({"image": "missing.png"}, "no image 'missing.png'"),
    ],
)
def test_what_cannot_be_edited_is_refused(options: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        original(options["image"], options.get("mask"))

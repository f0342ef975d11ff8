import numpy as np
import pytest

from opensana.datasets.emoji.lab import to_lab
from opensana.datasets.emoji.recolour import (
    LOOK_RIGHT,
    LOOK_WRONG,
    OBJECT_COLOURS,
    can_be_coloured,
    main_colour,
    nearest_colour,
    recolour,
    says_colour,
)
from tests.datasets.emoji.vocabularies import LABELS, small_vocabulary

DATA = small_vocabulary()


@pytest.mark.parametrize("colour", list(OBJECT_COLOURS))
@pytest.mark.parametrize("kind", [0, 1, LABELS.index("box")])
def test_the_main_colour_becomes_the_one_asked_for(kind: int, colour: str) -> None:
    picture = np.asarray(DATA.pictures[kind])
    result = recolour(picture, colour, main_colour(picture))
    moved = main_colour(result)
    assert moved.name == colour
    np.testing.assert_array_equal(result[..., 3], picture[..., 3])


def test_shading_keeps_its_order_and_transparency_its_pixels() -> None:
    picture = np.asarray(DATA.pictures[0])
    result = recolour(picture, "blue", main_colour(picture))
    inside = picture[..., 3] > 0
    before, after = (to_lab(p[inside][:, :3].astype(float))[:, 0] for p in (picture, result))
    darker = before < np.median(before) - 2
    assert after[darker].max() < after[~darker].min() + 1
    np.testing.assert_array_equal(result[~inside], picture[~inside])


def test_a_picture_of_two_colours_is_of_no_single_one() -> None:
    assert main_colour(np.asarray(DATA.pictures[-1])).share < 0.55
    assert main_colour(np.asarray(DATA.pictures[0])).share > 0.9


def test_white_shaded_with_lilac_has_no_hue() -> None:
    picture = np.full((8, 8, 4), 255, np.uint8)
    picture[4:, :, :3] = (206, 196, 226)
    main = main_colour(picture)
    assert main.share > 0.9
    assert main_colour(recolour(picture, "green", main)).name == "green"


def test_what_is_judged_by_eye_decides() -> None:
    assert not LOOK_RIGHT & LOOK_WRONG
    assert can_be_coloured("frog", 0.4)
    assert not can_be_coloured("octopus", 0.9)
    assert can_be_coloured("thing", 0.6)
    assert not can_be_coloured("thing", 0.5)


def test_colours_are_their_own_nearest_and_names_begin_with_them() -> None:
    for name, value in OBJECT_COLOURS.items():
        assert nearest_colour(to_lab(np.array(value, float))) == name
    assert says_colour("red apple") == "red"
    assert says_colour("redwood") is None

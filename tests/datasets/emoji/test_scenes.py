from dataclasses import replace

import numpy as np
import pytest

from opensana.datasets.emoji.compose import COLOURS, PAIRS, Scene, box, compose
from opensana.datasets.emoji.scenes import (
    GRID,
    PLACES,
    RELATIONS,
    SIZES,
    Background,
    Composition,
    Group,
    Painter,
    placed,
)
from opensana.errors import DataError
from tests.datasets.emoji.vocabularies import small_vocabulary

DATA = small_vocabulary()
PAINTER = Painter(DATA.pictures)


def test_one_on_white_is_the_picture_that_earlier_versions_learnt() -> None:
    for background in ("white", "light blue"):
        ours = PAINTER.draw(Composition((Group(3),), background=Background(background)))
        np.testing.assert_array_equal(ours, compose(Scene((3,), background), DATA.pictures))


@pytest.mark.parametrize("relation", list(PAIRS))
def test_two_kinds_stand_where_pairs_stood(relation: str) -> None:
    ours = PAINTER.draw(Composition((Group(2), Group(5)), relation=relation))
    theirs = compose(Scene((2, 5), position=relation), DATA.pictures)
    np.testing.assert_array_equal(ours, theirs)


def test_relations_put_the_objects_where_they_say() -> None:
    def centres(relation: str) -> list[tuple[float, float]]:
        return [one.centre for one in placed(Composition((Group(0), Group(1)), relation=relation))]

    (x, y), (u, v) = centres("left of")
    assert x < u and y == v
    assert centres("right of") == [(u, v), (x, y)]
    (x, y), (u, v) = centres("above")
    assert y < v and x == u
    assert centres("below") == [(u, v), (x, y)]
    (_, y), (_, v) = centres("in front of")
    assert y > v


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", list(SIZES))
def test_a_placed_object_is_within_a_sixth_of_the_middle_of_its_field(
    place: str, size: str
) -> None:
    (one,) = placed(Composition((Group(0, size=size),), place=place))
    field = {-1: 1 / 6, 0: 1 / 2, 1: 5 / 6}
    column = ("right" in place) - ("left" in place)
    row = ("bottom" in place) - ("top" in place)
    x, y = one.centre
    assert abs(x - field[column]) <= 1 / 6
    assert abs(y - field[row]) <= 1 / 6
    assert one.left >= 0 and one.left + one.side <= 1 and one.top >= 0 and one.top + one.side <= 1


@pytest.mark.parametrize("number", list(GRID))
def test_several_of_a_kind_overlap_at_corners_at_most(number: int) -> None:
    objects = placed(Composition((Group(0, number),)))
    assert len(objects) == number
    for index, one in enumerate(objects):
        for other in objects[:index]:
            (x, y), (u, v) = one.centre, other.centre
            width, height = one.side - abs(x - u), one.side - abs(y - v)
            assert max(width, 0) * max(height, 0) <= 0.03 * one.side**2


@pytest.mark.parametrize("number", list(GRID))
def test_objects_are_whole_latents_large(number: int) -> None:
    latents = 8
    side, corners = GRID[number]
    middle = {(1 - side) / 2}
    assert (side * latents).is_integer()
    assert all((part * latents).is_integer() for corner in corners for part in {*corner} - middle)


def test_sizes_are_in_order() -> None:
    for place in (None, "left"):
        sides = [placed(Composition((Group(0, size=size),), place=place))[0].side for size in SIZES]
        assert sides == sorted(sides)


def test_what_stands_in_front_hides_what_is_behind() -> None:
    size = 64
    both = PAINTER.draw(Composition((Group(1), Group(0)), relation="in front of"), size=size)
    front, back = placed(Composition((Group(1), Group(0)), relation="in front of"))
    alone = PAINTER.draw(Composition((Group(1),)), size=round(front.side * size))
    left, top, side = front.pixels(size)
    centre = slice(side // 2 - 2, side // 2 + 2)
    seen = both[top : top + side, left : left + side]
    assert np.abs(seen[centre, centre].astype(int) - alone[centre, centre]).max() < 40
    assert back.side > front.side


def test_a_background_fades_from_top_to_bottom() -> None:
    picture = PAINTER.draw(
        Composition((Group(0, size="tiny"),), background=Background("red", "blue"))
    )
    assert tuple(picture[0, 0]) == COLOURS["red"]
    assert tuple(picture[-1, 0]) == COLOURS["blue"]
    assert (np.diff(picture[:, 0, 2].astype(int)) >= 0).all()


def test_keys_differ_where_pictures_do() -> None:
    base = Composition((Group(0), Group(1)))
    others = [
        replace(base, relation="above"),
        replace(base, groups=(Group(1), Group(0))),
        replace(base, groups=(Group(0, colour="red"), Group(1))),
        replace(base, groups=(Group(0, 2), Group(1))),
        replace(base, background=Background("red")),
        replace(base, background=Background("white", "red")),
        Composition((Group(0),), place="left"),
        Composition((Group(0, size="tiny"),), place="left"),
    ]
    assert len({scene.key for scene in (base, *others)}) == len(others) + 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"groups": (Group(0, 6),)},
        {"groups": (Group(0, 0),)},
        {"groups": (Group(0, 2),), "place": "left"},
        {"groups": (Group(0, 2), Group(1)), "relation": "above"},
        {"groups": (Group(0),), "place": "lefft"},
        {"groups": (Group(0, colour="beige"),)},
        {"groups": (Group(0, size="giant"),)},
        {"groups": (Group(0),), "background": Background("mauve")},
    ],
)
def test_scenes_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError):
        Composition(**wrong)  # type: ignore[arg-type]


def test_every_relation_is_drawn() -> None:
    for relation in RELATIONS:
        assert PAINTER.draw(Composition((Group(0), Group(1)), relation=relation)).shape[2] == 3


def test_boxes_are_those_of_pairs() -> None:
    (one, other) = placed(Composition((Group(0), Group(1)), relation="left of"))
    for found, place in zip((one, other), PAIRS["left of"], strict=True):
        left, top, side = found.pixels(256)
        assert (left, top, left + side, top + side) == box(0.5, place)

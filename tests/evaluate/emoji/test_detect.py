import numpy as np
import pytest
from PIL import Image

from opensana.datasets.emoji.generator import Vocabulary
from opensana.datasets.emoji.recolour import OBJECT_COLOURS
from opensana.datasets.emoji.scenes import Composition, Group, placed
from opensana.evaluate.emoji.detect import Detector, Found
from tests.datasets.emoji.vocabularies import LABELS, small_vocabulary

VOCABULARY = Vocabulary(small_vocabulary())
DETECTOR = Detector(VOCABULARY)
DOG, APPLE = LABELS.index("dog face"), LABELS.index("red apple")


def drawn(scene: Composition) -> Image.Image:
    return Image.fromarray(VOCABULARY.painter.draw(scene))


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_as_many_are_found_as_there_are_where_they_are(number: int) -> None:
    scene = Composition((Group(DOG, number),))
    found = DETECTOR.find(drawn(scene), DOG)
    assert len(found) == number
    for one in placed(scene):
        distance = min(np.abs(np.subtract(one.centre, other.centre)).max() for other in found)
        assert distance < 0.03


def test_what_is_not_there_is_not_found() -> None:
    picture = drawn(Composition((Group(DOG, 2),)))
    assert not DETECTOR.find(picture, LABELS.index("drum"))
    blank = Image.new("RGB", (256, 256), "white")
    assert not DETECTOR.find(blank, DOG)
    assert not DETECTOR.find(blank, APPLE, "blue")


@pytest.mark.parametrize("colour", [name for name in OBJECT_COLOURS if name != "red"])
def test_the_colour_of_a_kind_is_told(colour: str) -> None:
    picture = drawn(Composition((Group(APPLE, colour=colour),)))
    (found,) = DETECTOR.find(picture, APPLE, "green")
    assert DETECTOR.colour_of(picture, found, APPLE) == colour


def test_of_two_each_has_its_own_colour() -> None:
    scene = Composition((Group(APPLE, colour="blue"), Group(DOG, colour="green")))
    picture = drawn(scene)
    for kind, colour in ((APPLE, "blue"), (DOG, "green")):
        found = DETECTOR.find(picture, kind, colour)
        assert [DETECTOR.colour_of(picture, one, kind) for one in found] == [colour]


def test_the_place_and_the_size_do_not_matter() -> None:
    canvas = Image.new("RGB", (256, 256), "white")
    small = drawn(Composition((Group(DOG),))).resize((96, 96))
    canvas.paste(small, (130, 31))
    (found,) = DETECTOR.find(canvas, DOG)
    assert found.centre == pytest.approx(((130 + 48) / 256, (31 + 48) / 256), abs=0.03)
    assert isinstance(found, Found)
    assert DETECTOR.shows(canvas, found, DOG)
    assert not DETECTOR.shows(canvas, found, APPLE)

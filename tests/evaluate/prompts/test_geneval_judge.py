"""GenEval's six questions on boxes whose truth is known."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from opensana.errors import DataError
from opensana.evaluate.prompts.detector import Found, Objects
from opensana.evaluate.prompts.geneval_judge import COLOURS, Judge, relations


class Boxes:
    """Finds what it was told, if confident enough."""

    name = "boxes@0"

    def __init__(self, **objects: list[Found]) -> None:
        self.objects = objects

    def check(self, names: Sequence[str]) -> None:
        pass

    def __call__(self, picture: Image.Image, names: Sequence[str], threshold: float) -> Objects:
        return {
            name: [place for place in places if place.score > threshold]
            for name, places in self.objects.items()
            if name in names
        }


class Painted:
    """Texts are their colour's word, pictures the colour in their middle."""

    name = "painted@0"
    colours = ("red", "green", "blue")

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        words = [next(c for c in COLOURS if f" {c}" in text) for text in texts]
        return torch.nn.functional.one_hot(torch.tensor([COLOURS.index(w) for w in words])).float()

    def embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        rows = []
        for image in images:
            pixel: Any = image.getpixel((image.width // 2, image.height // 2))
            name = self.colours[pixel.index(max(pixel))]
            rows.append(torch.eye(len(COLOURS))[COLOURS.index(name)])
        return torch.stack(rows)


def found(left: float, top: float = 0, *, side: float = 10, score: float = 0.95) -> Found:
    return Found(score, left, top, left + side, top + side)


def task(tag: str, *include: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tag": tag, "prompt": "a photo", "include": list(include), **more}


def one(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


PICTURE = Image.new("RGB", (100, 40), "red")
PICTURE.paste("blue", (50, 0, 100, 40))


@pytest.mark.parametrize(
    ("objects", "asked", "right"),
    [
        ({"cat": [found(0)]}, task("single_object", one("cat")), True),
        ({"cat": [found(0, score=0.2)]}, task("single_object", one("cat")), False),
        ({"dog": [found(0)]}, task("single_object", one("cat")), False),
        ({"cat": [found(0)], "dog": [found(9)]}, task("two_object", one("cat"), one("dog")), True),
        ({"cat": [found(0)]}, task("two_object", one("cat"), one("dog")), False),
    ],
)
def test_objects(objects: dict[str, list[Found]], asked: dict[str, Any], right: bool) -> None:
    assert Judge(Boxes(**objects))(PICTURE, asked)[0] is right


@pytest.mark.parametrize(("count", "right"), [(1, False), (2, True), (3, False)])
def test_counting_has_an_upper_end_and_a_higher_threshold(count: int, right: bool) -> None:
    unsure = [found(90, score=0.8)] * 5
    judge = Judge(Boxes(cat=[found(12 * n) for n in range(count)] + unsure))
    asked = task("counting", one("cat", 2), exclude=[one("cat", 3)])
    correct, reason = judge(PICTURE, asked)
    assert correct is right and bool(reason) is not right


def test_positions() -> None:
    place = [one("cat"), one("dog", position=["right of", 0])]
    for left, right in ((60, True), (0, False), (5, False)):
        judge = Judge(Boxes(cat=[found(20)], dog=[found(left)]))
        assert judge(PICTURE, task("position", *place))[0] is right
    correct, reason = Judge(Boxes(dog=[found(60)]))(PICTURE, task("position", *place))
    assert not correct and "nothing there for dog to be right of" in reason


def test_relations() -> None:
    assert relations(found(0), found(50)) == {"left of"}
    assert relations(found(50, 50), found(0)) == {"right of", "below"}
    assert relations(found(0, 0), found(20, 50)) == {"above"}
    assert relations(found(0), found(1)) == set(), "a tenth of both sides does not count"


def test_colours_need_a_clip() -> None:
    boxes = Boxes(cat=[found(5)], dog=[found(60)])
    asked = task("color_attr", one("cat", color="red"), one("dog", color="blue"))
    wrong = task("color_attr", one("cat", color="blue"), one("dog", color="red"))
    judge = Judge(boxes, Painted())
    assert judge(PICTURE, asked) == (True, "")
    assert judge(PICTURE, wrong) == (
        False,
        "blue cat wanted, red there; red dog wanted, blue there",
    )
    alone = Judge(boxes)
    assert not alone.answers(asked) and alone.answers(task("single_object", one("cat")))
    assert alone.left_out([asked]) == {"color_attr": "colours need --clip"}
    assert judge.described == (
        "GenEval-like, not comparable: objects by boxes@0, colours by painted@0"
    )


def test_a_box_beyond_the_picture_is_cut() -> None:
    boxes = Boxes(cat=[Found(0.9, 99.9, -5, 140, 60)])
    asked = task("colors", one("cat", color="blue"))
    assert Judge(boxes, Painted())(PICTURE, asked)[0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (task("colors", one("cat", color="teal")), "unknown colour 'teal'"),
        (task("position", one("cat", position=["near", 0])), "the position"),
        (task("position", one("cat", position=["above", 4])), "the position"),
        (task("single_object"), "no classes and counts to include"),
        (task("single_object", one("cat", 0)), "no classes and counts"),
        (task("counting", one("cat"), exclude=["cat"]), "counts to exclude"),
    ],
)
def test_tasks_that_are_not_genevals(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Judge(Boxes()).check([bad])

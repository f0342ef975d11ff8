"""GenEval's six questions (arXiv 2310.11513), asked of scenes whose truth is known.

The scenes and their words are those of training's tables, with combinations that training never
sees: pairs of kinds, colours of a kind, numbers of a kind. The single object is judged in
`nearest.py`.

    two objects         both are there
    counting            as many of the kind as were asked for, 2 to 5
    colours             the kind by its shape, in a named colour that it does not have
    position            both in the relation asked for; one within a sixth of its field's middle
    colour attribution  both kinds, each by its shape and in its own colour
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from PIL import Image

from opensana.datasets.emoji.generator import Vocabulary, draw_scene
from opensana.datasets.emoji.scenes import Composition
from opensana.evaluate.emoji.detect import Detector, Found
from opensana.evaluate.emoji.nearest import Draw, draw_all
from opensana.workers.progress import Report

RELATIONS = ("left of", "right of", "above", "below")
FIELDS = {-1: 1 / 6, 0: 1 / 2, 1: 5 / 6}
NEAR = 1 / 6
"""Of the picture's side: so far may an object be from the middle of its field, or must it be
beyond another."""


@dataclass(frozen=True)
class Asked:
    """A scene in words."""

    prompt: str
    scene: Composition


@dataclass(frozen=True)
class Composed:
    """Shares of right pictures on held-out combinations."""

    pictures: int
    """Of each question."""
    two_objects: float
    counting: float
    colours: float
    position: float
    colour_attribution: float


QUESTIONS = ("two_objects", "counting", "colours", "position", "colour_attribution")


def questions(
    vocabulary: Vocabulary, name: str, count: int, *, held_out: bool = True
) -> list[Asked]:
    """The same each time, on white; without `held_out`, what training may see, to choose by."""
    asked = []
    for number in range(count):
        dice = Random(f"{'ask' if held_out else 'try'}/{name}/{number}")
        scene = _scene(vocabulary, name, number, dice, held_out=held_out)
        asked.append(Asked(vocabulary.caption(scene, dice), scene))
    return asked


def _scene(
    vocabulary: Vocabulary, name: str, number: int, dice: Random, *, held_out: bool
) -> Composition:
    def drawn(task: str, *parts: str) -> Iterator[Composition]:
        return _drawn(vocabulary, task, dice, frozenset(parts if held_out else ()))

    if name == "two_objects":
        return replace(next(drawn("two", "pair")), relation="and")
    if name == "counting":
        return next(s for s in drawn("counted", "number") if s.total == 2 + number % 4)
    if name == "colours":
        main = vocabulary.painter.main
        wanted = drawn("coloured", "colour")
        return next(s for s in wanted if main(s.groups[0].kind).name != s.groups[0].colour)
    if name == "colour_attribution":
        wanted = drawn("attributed", "pair")
        different = (s for s in wanted if s.groups[0].colour != s.groups[1].colour)
        return replace(next(different), relation="and")
    if number % 2:
        return next(s for s in drawn("positioned") if not s.groups[0].colour)
    return next(s for s in drawn("two", "pair") if s.relation in RELATIONS)


def _drawn(
    vocabulary: Vocabulary, task: str, dice: Random, held_out: frozenset[str]
) -> Iterator[Composition]:
    """Scenes of a task with these held-out parts alone, all objects of plain size."""
    while True:
        scene = draw_scene(vocabulary, task, dice, held_out=held_out, on_white=True)
        if all(group.size == "plain" for group in scene.groups):
            yield scene


# ------------------------------------------------------------------ judging


def right(detector: Detector, name: str, scene: Composition, picture: Image.Image) -> bool:
    """Whether a picture shows what was asked for."""
    found = [detector.find(picture, group.kind, group.colour) for group in scene.groups]
    if not all(found):
        return False
    if name == "counting":
        return len(found[0]) == scene.total
    if name == "two_objects":
        return True
    if name == "position":
        if scene.place is not None:
            return any(_in_field(one, scene.place) for one in found[0])
        return any(_related(a, b, scene.relation) for a in found[0] for b in found[1])
    return all(
        any(detector.colour_of(picture, one, group.kind) == group.colour for one in places)
        for group, places in zip(scene.groups, found, strict=True)
    )


def _in_field(found: Found, place: str) -> bool:
    column = ("right" in place) - ("left" in place)
    row = ("bottom" in place) - ("top" in place)
    x, y = found.centre
    return abs(x - FIELDS[column]) <= NEAR and abs(y - FIELDS[row]) <= NEAR


def _related(one: Found, other: Found, relation: str) -> bool:
    (x, y), (u, v) = one.centre, other.centre
    beyond = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}
    return beyond[relation] >= NEAR


def ask_composed(
    draw: Draw,
    vocabulary: Vocabulary,
    count: int,
    *,
    held_out: bool = True,
    report: Callable[[str], Report | None] = lambda _: None,
) -> tuple[Composed, dict[str, list[tuple[Asked, Image.Image, bool]]]]:
    """Draw and judge so many scenes of every question; the shares, and each picture's verdict.

    Without `held_out` the combinations may have been trained on: settings are chosen by these.
    """
    detector = Detector(vocabulary)
    answers: dict[str, list[tuple[Asked, Image.Image, bool]]] = {}
    for name in QUESTIONS:
        asked = questions(vocabulary, name, count, held_out=held_out)
        pictures = draw_all(draw, [one.prompt for one in asked], report=report(name))
        answers[name] = [
            (one, picture, right(detector, name, one.scene, picture))
            for one, picture in zip(asked, pictures, strict=True)
        ]
    return Composed(count, **{name: share(found) for name, found in answers.items()}), answers


def share(found: Sequence[tuple[Asked, Image.Image, bool]]) -> float:
    return float(np.mean([verdict for *_, verdict in found]))

"""GenEval's six questions by any detector: "GenEval-like, not comparable".

The rules are GenEval's (arXiv 2310.11513, and its evaluate_images.py): what must be in the picture
is a list of {"class", "count"}, some with {"color"} or {"position": [relation, number]}; what must
not be is another. Published figures have Mask2Former and its masks; here any detector gives boxes,
and colours are read from the whole box.

    single_object, two_object, counting     the detector
    position                                the detector: boxes apart in the relation asked for
    colors, color_attr                      the detector and a CLIP
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from opensana.errors import DataError
from opensana.evaluate.prompts.detector import Found, Objects

PROTOCOL = "GenEval-like, not comparable"
CONFIDENT, CONFIDENT_TO_COUNT = 0.3, 0.9
MOST_OBJECTS = 16
APART = 0.1
"""Of the sum of two boxes' sides: so much of their distance does not count."""
BEYOND = 0.5
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PHRASES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")

Task = dict[str, Any]


class Detects(Protocol):
    """`detector.ObjectDetector`, or what stands for it."""

    name: str

    def check(self, names: Sequence[str]) -> None: ...

    def __call__(self, picture: Image.Image, names: Sequence[str], threshold: float) -> Objects: ...


class Embeds(Protocol):
    """A CLIP: unit vectors of pictures and texts."""

    name: str

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor: ...

    def embed_texts(self, texts: Sequence[str]) -> Tensor: ...


class Judge:
    """Whether a picture shows what a task asks for, and if not, why."""

    def __init__(self, detector: Detects, clip: Embeds | None = None) -> None:
        self.detector, self.clip = detector, clip
        self._phrases: dict[str, Tensor] = {}

    @property
    def described(self) -> str:
        colours = "" if self.clip is None else f", colours by {self.clip.name}"
        return f"{PROTOCOL}: objects by {self.detector.name}{colours}"

    def check(self, tasks: Sequence[Task]) -> None:
        """DataError for tasks that are not GenEval's, or whose classes are not known."""
        for task in tasks:
            for wish in (*_wishes(task, "include"), *_wishes(task, "exclude")):
                colour, position = wish.get("color"), wish.get("position")
                if colour is not None and colour not in COLOURS:
                    raise DataError(f"{task['prompt']!r} asks for the unknown colour {colour!r}")
                if position is not None and not _is_position(position, len(task["include"])):
                    raise DataError(f"{task['prompt']!r} asks for the position {position!r}")
        self.detector.check(sorted({name for task in tasks for name in _names(task)}))

    def answers(self, task: Task) -> bool:
        """Whether this judge can: colours need a CLIP."""
        return self.clip is not None or not any("color" in w for w in _wishes(task, "include"))

    def left_out(self, tasks: Sequence[Task]) -> dict[str, str]:
        names = dict.fromkeys(task["tag"] for task in tasks if not self.answers(task))
        return {", ".join(names): "colours need --clip"} if names else {}

    def __call__(self, picture: Image.Image, task: Task) -> tuple[bool, str]:
        """Right or not, with the reasons against it."""
        counting = task["tag"] == "counting"
        threshold = CONFIDENT_TO_COUNT if counting else CONFIDENT
        objects = {
            name: places[:MOST_OBJECTS]
            for name, places in self.detector(picture, _names(task), threshold).items()
        }
        groups: list[list[Found] | None] = []
        reasons = []
        for wish in _wishes(task, "include"):
            places = objects.get(wish["class"], [])[: wish["count"]]
            reason = self._against(picture, wish, places, groups)
            groups.append(None if reason else places)
            reasons += [reason] if reason else []
        for wish in _wishes(task, "exclude"):
            count = len(objects.get(wish["class"], []))
            if count >= wish["count"]:
                reasons.append(f"fewer than {wish['count']} {wish['class']} wanted, {count} there")
        return not reasons, "; ".join(reasons)

    def _against(
        self,
        picture: Image.Image,
        wish: Task,
        places: list[Found],
        groups: Sequence[list[Found] | None],
    ) -> str:
        """Why a wish is not fulfilled, or ""."""
        name, count = wish["class"], wish["count"]
        if len(places) < count:
            return f"{count} {name} wanted, {len(places)} there"
        if "color" in wish:
            colours = self._colours(picture, name, places)
            if colours.count(wish["color"]) < count:
                return f"{wish['color']} {name} wanted, {', '.join(colours)} there"
        if "position" in wish:
            relation, other = wish["position"]
            others = groups[other]
            if others is None:
                return f"nothing there for {name} to be {relation}"
            if not all(relation in relations(a, b) for a in places for b in others):
                return f"{name} is not {relation}"
        return ""

    def _colours(self, picture: Image.Image, name: str, places: Sequence[Found]) -> list[str]:
        """The colour of each object: of the words for all colours, the nearest to its box."""
        assert self.clip is not None
        if name not in self._phrases:
            texts = [phrase.format(c, name) for c in COLOURS for phrase in PHRASES]
            texts = self.clip.embed_texts(texts).unflatten(0, (len(COLOURS), len(PHRASES)))
            self._phrases[name] = normalize(texts.mean(1), dim=-1)
        crops = [picture.crop(_whole_pixels(place, picture.size)) for place in places]
        nearest: Any = (self.clip.embed_images(crops) @ self._phrases[name].T).argmax(1)
        return [COLOURS[index] for index in torch.as_tensor(nearest).tolist()]


def relations(one: Found, other: Found) -> set[str]:
    """How one box lies to another: a direction counts if it has most of the distance."""
    boxes = np.array([one.box, other.box]).reshape(2, 2, 2)  # which, near or far edge, x or y
    centres, sides = boxes.mean(1), np.abs(boxes[:, 1] - boxes[:, 0])
    offset = centres[0] - centres[1]
    free = np.sign(offset) * np.maximum(np.abs(offset) - APART * sides.sum(0), 0)
    if not free.any():
        return set()
    x, y = free / np.linalg.norm(offset)
    beyond = {"left of": -x, "right of": x, "above": -y, "below": y}
    return {name for name, share in beyond.items() if share > BEYOND}


RELATIONS = ("left of", "right of", "above", "below")


def _wishes(task: Task, kind: str) -> list[Task]:
    wishes = task.get(kind, [])
    good = isinstance(wishes, list) and all(
        isinstance(wish, dict)
        and isinstance(wish.get("class"), str)
        and isinstance(wish.get("count"), int)
        and wish["count"] > 0
        for wish in wishes
    )
    if not good or (kind == "include" and not wishes):
        raise DataError(f"{task['prompt']!r} has no classes and counts to {kind}")
    return wishes


def _names(task: Task) -> list[str]:
    wishes = (*_wishes(task, "include"), *_wishes(task, "exclude"))
    return list(dict.fromkeys(wish["class"] for wish in wishes))


def _is_position(position: Any, count: int) -> bool:
    return (
        isinstance(position, list)
        and len(position) == 2
        and position[0] in RELATIONS
        and isinstance(position[1], int)
        and 0 <= position[1] < count
    )


def _whole_pixels(place: Found, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box of at least one pixel inside the picture."""
    width, height = size
    left, top = (min(max(int(v), 0), most - 1) for v, most in zip(place.box[:2], size, strict=True))
    right, bottom = int(np.ceil(place.right)), int(np.ceil(place.bottom))
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)

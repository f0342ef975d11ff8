"""Two emoji and how they stand: is each half of the picture what the words say?

The box in which training composes an emoji of a pair is compared with the whole vocabulary in that
box, on the same background. A pair counts as in order when both halves are right, and as there when
they are right or exchanged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opensana.datasets.emoji.compose import PAIRS, Scene
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.prompts import PAIR_ROUNDS, pair_scenes
from opensana.evaluate.emoji.backgrounds import Backgrounds, cut
from opensana.evaluate.emoji.nearest import Draw, draw_all, shuffled
from opensana.workers.progress import Report


@dataclass(frozen=True)
class PairQuestion:
    """A prompt, its scene, and the families of the scene's two emoji."""

    prompt: str
    scene: Scene
    families: tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Shares of pictures with both emoji asked for."""

    pictures: int
    in_order: float
    """Each where the words put it."""
    there: float
    """In either order."""


def pair_questions(data: EmojiData, count: int, *, held_out: bool) -> list[PairQuestion]:
    """Pairs that training leaves out, or has: left and right, above and below; always the same."""
    asked: list[PairQuestion] = []
    for scene, (prompt,) in pair_scenes(data.vocabulary, rounds=PAIR_ROUNDS, held_out=held_out):
        one, other = (data.records[index].family for index in scene.emoji)
        if one != other:
            asked.append(PairQuestion(prompt.text, scene, (one, other)))
    return shuffled(asked, lambda question: question.prompt)[:count]


def ask_pairs(
    draw: Draw,
    questions: Sequence[PairQuestion],
    backgrounds: Backgrounds,
    *,
    report: Report | None = None,
) -> Pairs:
    """Draw every pair; `backgrounds` are those of `halves`."""
    pictures = draw_all(draw, [question.prompt for question in questions], report=report)
    found = [seen(p, q.scene, backgrounds) for p, q in zip(pictures, questions, strict=True)]
    wanted = [question.families for question in questions]
    matches = list(zip(found, wanted, strict=True))
    return Pairs(
        pictures=len(matches),
        in_order=float(np.mean([one == other for one, other in matches])),
        there=float(np.mean([set(one) == set(other) for one, other in matches])),
    )


def seen(picture: Image.Image, scene: Scene, backgrounds: Backgrounds) -> tuple[str, str]:
    """The families nearest to the two halves, in the scene's order."""
    known = backgrounds.on(scene.background)
    first, second = (
        known.families(known.distances(cut(picture, place)))[0] for place in PAIRS[scene.position]
    )
    return first, second

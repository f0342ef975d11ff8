"""Does the background have the colour asked for, and is the emoji on it the right one?

Colours are compared by CIE76, the distance in CIELAB (D65); 2.3 is just noticeable (Mahy et al.
1994). The background is seen where no emoji is asked for: in a frame along the picture's edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from opensana.datasets.emoji.compose import COLOURS, SIZE, describe
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.datasets.emoji.lab import to_lab
from opensana.datasets.emoji.prompts import BACKGROUNDS, scenes_of
from opensana.evaluate.emoji.backgrounds import Backgrounds
from opensana.evaluate.emoji.nearest import (
    Answers,
    Draw,
    Question,
    draw_all,
    shuffled,
    summarise,
    verdict,
)
from opensana.workers.progress import Report

FRAME = 4
JUST_NOTICEABLE, CLOSE = 2.3, 5.0


@dataclass(frozen=True)
class ColourQuestion(Question):
    """An emoji, and the background that it is asked to stand on."""

    background: str


@dataclass(frozen=True)
class Colours:
    """The emoji, among the vocabulary on that background, and the colour of the frame."""

    emoji: Answers
    just_noticeable: float
    """Share of pictures whose mean colour of the frame is within 2.3 of the one asked for."""
    close: float
    """... within 5."""
    median_distance: float
    """Median over the pictures of that distance."""
    pixels_just_noticeable: float
    """Share of the frame's pixels within 2.3, each by itself: an uneven one may have the right
    mean."""


def colour_questions(data: EmojiData, count: int) -> list[ColourQuestion]:
    """Labels on colours that they were trained on, the same each time.

    Emoji that reach into the frame are left out.
    """
    asked = [
        ColourQuestion(describe(scene, record.label), record, scene.background)
        for record in data.vocabulary
        for scene in scenes_of(record, backgrounds=BACKGROUNDS)[1:]
    ]
    ordered = shuffled(asked, lambda question: f"{question.record.hexcode}/{question.background}")
    return list(islice((q for q in ordered if _leaves_frame(data, q.record)), count))


def _leaves_frame(data: EmojiData, record: Record) -> bool:
    alpha = np.asarray(data.pictures[record.index])[..., 3]
    return not alpha[_frame(SIZE, SIZE)].any()


def ask_colours(
    draw: Draw,
    questions: Sequence[ColourQuestion],
    backgrounds: Backgrounds,
    *,
    report: Report | None = None,
) -> Colours:
    """Draw every question and judge background and emoji."""
    pictures = draw_all(draw, [question.prompt for question in questions], report=report)
    pairs = list(zip(pictures, questions, strict=True))
    frames = [frame_distances(picture, question.background) for picture, question in pairs]
    means = np.array([mean for mean, _ in frames])
    return Colours(
        emoji=summarise([verdict(p, q.record, backgrounds.on(q.background)) for p, q in pairs]),
        just_noticeable=float(np.mean(means <= JUST_NOTICEABLE)),
        close=float(np.mean(means <= CLOSE)),
        median_distance=float(np.median(means)),
        pixels_just_noticeable=float(
            np.mean([(own <= JUST_NOTICEABLE).mean() for _, own in frames])
        ),
    )


def frame_distances(picture: Image.Image, background: str) -> tuple[float, np.ndarray]:
    """How far the frame's mean colour and each of its pixels [N] are from a background's colour."""
    pixels = np.asarray(picture.convert("RGB"))
    frame = pixels[_frame(*pixels.shape[:2])].astype(np.float64)
    wanted = to_lab(np.array(COLOURS[background]))
    own = np.linalg.norm(to_lab(frame) - wanted, axis=-1)
    return float(np.linalg.norm(to_lab(frame.mean(axis=0)) - wanted)), own


def _frame(height: int, width: int) -> np.ndarray:
    """True on the outer pixels of [height, width]."""
    frame = np.ones((height, width), dtype=bool)
    frame[FRAME:-FRAME, FRAME:-FRAME] = False
    return frame

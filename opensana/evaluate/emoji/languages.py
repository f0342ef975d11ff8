"""Labels in other languages that were never trained on, and emoji characters.

The kind is known by its English names; the label in that language is new. What is drawn is judged
like any other label (`nearest.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.languages import CHARACTER
from opensana.datasets.emoji.spoken import held_out_labels
from opensana.evaluate.emoji.nearest import Draw, Question, References, ask, shuffled
from opensana.workers.progress import Report


@dataclass(frozen=True)
class Spoken:
    """Shares of pictures that are right among the five nearest."""

    pictures: int
    """Of each language at most."""
    languages: dict[str, float]
    mean: float
    """Of the languages."""
    characters: float
    """Emoji characters, which are trained on."""


def spoken_questions(data: EmojiData, count: int | None = None) -> dict[str, list[Question]]:
    """Held-out labels of every language, and characters, the same each time; all or `count`.

    What an English caption says as well ("robot") is known, and not asked.
    """
    english = {caption.text.lower() for r in data.vocabulary for caption in r.captions}
    asked = {
        language: [Question(text, record) for record, text in known if text.lower() not in english]
        for language, known in held_out_labels(data).items()
    }
    characters = data.languages[CHARACTER]
    asked[CHARACTER] = [Question(characters[r.hexcode][0], r) for r in data.vocabulary]
    return {
        language: shuffled(known, lambda question: question.record.hexcode)[:count]
        for language, known in asked.items()
    }


def ask_spoken(
    draw: Draw,
    data: EmojiData,
    known: References,
    count: int,
    *,
    report: Callable[[str], Report | None] = lambda _: None,
) -> Spoken:
    """Draw so many labels of every language."""
    found = {
        language: ask(draw, questions, known, report=report(language))[0].top5
        for language, questions in spoken_questions(data, count).items()
    }
    characters = found.pop(CHARACTER)
    return Spoken(count, found, float(np.mean(list(found.values()))), characters)

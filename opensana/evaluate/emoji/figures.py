"""All figures of a model on the emoji set, as `opensana evaluate` prints them."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opensana.autoencoder.model import Autoencoder
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.generator import Vocabulary
from opensana.datasets.emoji.preparation import prepare
from opensana.evaluate.emoji.backgrounds import halves, whole
from opensana.evaluate.emoji.colours import Colours, ask_colours, colour_questions
from opensana.evaluate.emoji.counts import Counts
from opensana.evaluate.emoji.languages import Spoken, ask_spoken
from opensana.evaluate.emoji.nearest import (
    Answers,
    Draw,
    ask,
    caption_questions,
    drawer,
    judge,
    label_questions,
    references,
    save_sheet,
)
from opensana.evaluate.emoji.pairs import Pairs, ask_pairs, pair_questions
from opensana.evaluate.emoji.questions import QUESTIONS, Composed, ask_composed
from opensana.evaluate.emoji.reconstruction import evaluate_reconstruction, linear_reference
from opensana.metrics.reconstruction import Reconstruction, through
from opensana.models.index import INDEX
from opensana.models.load import load_autoencoder
from opensana.pipeline import Sana
from opensana.weights.locate import locate
from opensana.workers.progress import progress

DEFAULT = Counts()
LINEAR_FIT = 640
"""Training pictures that the linear code is fitted to; more of them change nothing."""


@dataclass(frozen=True)
class Generation:
    """Nearest-emoji figures; among the vocabulary, on the background asked for, unless said."""

    labels: Answers
    labels_among_all: Answers
    """The same pictures, compared with every emoji of the set."""
    held_out_captions: Answers | None
    colours: Colours | None
    """Labels on the colours that each was trained on."""
    held_out_pairs: Pairs | None
    """Pairs of emoji that were never trained on together."""
    training_pairs: Pairs | None
    composed: Composed | None
    """GenEval's questions beside the single object, which is `labels_among_all`."""
    overall: float | None
    """The mean of the six."""
    spoken: Spoken | None
    """Held-out labels of other languages, and emoji characters."""


@dataclass(frozen=True)
class Figures:
    """The figures of one model; an autoencoder alone draws nothing."""

    reconstruction_held_out: Reconstruction
    reconstruction_train: Reconstruction
    linear_code_held_out: Reconstruction
    """The best linear code of the same size on the held-out pictures, to compare with."""
    generation: Generation | None


def evaluate(
    model: str | Path | Sana,
    data: str | Path,
    *,
    counts: Counts = DEFAULT,
    grid: str | Path | None = None,
    steps: int | None = None,
    size: int | None = None,
) -> dict[str, Any]:
    """The figures as a nested dictionary; `grid` takes a PNG of the first 25 pictures.

    `steps` and `size`, the side of the pictures in pixels, replace the model's own.
    """
    emoji = open_or_prepare(Path(data))
    part = autoencoder_alone(model)
    if part is not None:
        return asdict(measure_all(part, emoji))
    sana = model if isinstance(model, Sana) else Sana.load(model)
    draw = drawer(sana, steps=steps, size=size)
    return asdict(measure_all(sana.autoencoder, emoji, draw=draw, counts=counts, grid=grid))


def open_or_prepare(folder: Path) -> EmojiData:
    """The prepared folder, made now if it is missing."""
    if not folder.exists():
        print(f"opensana: no {folder} yet, fetching the emoji set with npm", file=sys.stderr)
        return prepare(folder)
    return EmojiData.open(folder)


def autoencoder_alone(model: str | Path | Sana) -> Autoencoder | None:
    """The autoencoder, when the model is a folder that holds nothing else."""
    if isinstance(model, Sana):
        return None
    folder = locate(model)
    return None if (folder / INDEX).is_file() else load_autoencoder(folder).float()


def measure_all(
    autoencoder: Autoencoder,
    data: EmojiData,
    *,
    draw: Draw | None = None,
    counts: Counts = DEFAULT,
    grid: str | Path | None = None,
) -> Figures:
    """Measure the autoencoder, and what `draw` draws if it is given."""
    reconstruct = through(autoencoder)
    linear = linear_reference(data, numbers=autoencoder.latent_channels, pictures=LINEAR_FIT)
    return Figures(
        reconstruction_held_out=evaluate_reconstruction(reconstruct, data, split="held_out"),
        reconstruction_train=evaluate_reconstruction(reconstruct, data, split="train"),
        linear_code_held_out=evaluate_reconstruction(linear, data, split="held_out"),
        generation=None if draw is None else measure_drawing(draw, data, counts=counts, grid=grid),
    )


def measure_drawing(
    draw: Draw, data: EmojiData, *, counts: Counts = DEFAULT, grid: str | Path | None = None
) -> Generation:
    """Ask for labels, for colours, and for captions and pairs that were kept out of training."""
    known = references(data, data.vocabulary)
    questions = label_questions(data, counts.labels)
    answers, pictures = ask(draw, questions, known, report=progress("labels"))
    if grid is not None:
        save_sheet(grid, pictures, questions)
    everything = references(data, data.records)
    among_all = judge(pictures, [question.record for question in questions], everything)
    others = caption_questions(data, counts.captions)
    held_out = ask(draw, others, known, report=progress("held-out captions"))[0] if others else None
    colours = measure_colours(draw, data, counts.colours)
    held_out_pairs, training_pairs = measure_pairs(draw, data, counts.pairs)
    composed = measure_composed(draw, data, counts.questions)
    spoken = None
    if counts.languages:
        spoken = ask_spoken(draw, data, known, counts.languages, report=progress)
    return Generation(
        labels=answers,
        labels_among_all=among_all,
        held_out_captions=held_out,
        colours=colours,
        held_out_pairs=held_out_pairs,
        training_pairs=training_pairs,
        composed=composed,
        overall=None if composed is None else overall(among_all, composed),
        spoken=spoken,
    )


def measure_composed(draw: Draw, data: EmojiData, count: int) -> Composed | None:
    """Ask the questions about scenes of several things; None when there is nothing to ask."""
    return ask_composed(draw, Vocabulary(data), count, report=progress)[0] if count else None


def overall(single: Answers, composed: Composed) -> float:
    """The mean of the six questions."""
    return float(np.mean([single.top1, *(getattr(composed, name) for name in QUESTIONS)]))


def measure_colours(draw: Draw, data: EmojiData, count: int) -> Colours | None:
    """Ask for labels on colours; None when there is nothing to ask."""
    questions = colour_questions(data, count)
    if not questions:
        return None
    return ask_colours(draw, questions, whole(data, data.vocabulary), report=progress("colours"))


def measure_pairs(draw: Draw, data: EmojiData, count: int) -> list[Pairs | None]:
    """Ask for held-out pairs and for those of the training set; None when there are none."""
    if not count:
        return [None, None]
    backgrounds = halves(data, data.vocabulary)
    figures: list[Pairs | None] = []
    for what, held_out in (("held-out pairs", True), ("training pairs", False)):
        questions = pair_questions(data, count, held_out=held_out)
        found = (
            ask_pairs(draw, questions, backgrounds, report=progress(what)) if questions else None
        )
        figures.append(found)
    return figures

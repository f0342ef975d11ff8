"""All figures of a model on the emoji set, as `opensana evaluate` prints them."""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from opensana.autoencoder.model import Autoencoder
from opensana.data.emoji.dataset import EmojiData
from opensana.data.emoji.preparation import prepare
from opensana.evaluate.generation import (
    Answers,
    Draw,
    Report,
    ask,
    caption_questions,
    drawer,
    judge,
    label_questions,
    references,
    save_sheet,
)
from opensana.evaluate.reconstruction import (
    Reconstruction,
    evaluate_reconstruction,
    linear_reference,
    through,
)
from opensana.layout import load_autoencoder
from opensana.pipeline import Sana

LINEAR_FIT = 640
"""Training pictures that the linear code is fitted to; more of them change nothing."""


@dataclass(frozen=True)
class Generation:
    """Nearest-emoji figures; `labels` and `held_out_captions` are among the vocabulary."""

    labels: Answers
    labels_among_all: Answers
    """The same pictures, compared with every emoji of the set."""
    held_out_captions: Answers | None


@dataclass(frozen=True)
class Figures:
    """The figures of one model; an autoencoder alone draws nothing."""

    reconstruction_held_out: Reconstruction
    reconstruction_train: Reconstruction
    linear_code_held_out: Reconstruction
    """The best linear code of the same size on the held-out pictures, to compare with."""
    generation: Generation | None


def evaluate(
    model: str | Path | Sana, data: str | Path, *, labels: int = 200, grid: str | Path | None = None
) -> dict[str, Any]:
    """The figures as a nested dictionary; `grid` takes a PNG of the first 25 pictures."""
    emoji = open_or_prepare(Path(data))
    part = autoencoder_alone(model)
    if part is not None:
        return asdict(measure_all(part, emoji))
    sana = model if isinstance(model, Sana) else Sana.load(model)
    return asdict(measure_all(sana.autoencoder, emoji, draw=drawer(sana), labels=labels, grid=grid))


def open_or_prepare(folder: Path) -> EmojiData:
    """The prepared folder, made now if it is missing."""
    if not folder.exists():
        print(f"opensana: no {folder} yet, fetching the emoji set with npm", file=sys.stderr)
        return prepare(folder)
    return EmojiData.open(folder)


def autoencoder_alone(model: str | Path | Sana) -> Autoencoder | None:
    """The autoencoder, when the model is a folder that holds nothing else."""
    if isinstance(model, Sana) or not (Path(model) / "config.json").is_file():
        return None
    return load_autoencoder(Path(model)).float()


def measure_all(
    autoencoder: Autoencoder,
    data: EmojiData,
    *,
    draw: Draw | None = None,
    labels: int = 200,
    grid: str | Path | None = None,
) -> Figures:
    """Measure the autoencoder, and what `draw` draws if it is given."""
    reconstruct = through(autoencoder)
    linear = linear_reference(data, numbers=autoencoder.latent_channels, pictures=LINEAR_FIT)
    return Figures(
        reconstruction_held_out=evaluate_reconstruction(reconstruct, data, split="held_out"),
        reconstruction_train=evaluate_reconstruction(reconstruct, data, split="train"),
        linear_code_held_out=evaluate_reconstruction(linear, data, split="held_out"),
        generation=None if draw is None else measure_drawing(draw, data, labels=labels, grid=grid),
    )


def measure_drawing(
    draw: Draw, data: EmojiData, *, labels: int = 200, grid: str | Path | None = None
) -> Generation:
    """Ask for labels, and for captions that were kept out of training."""
    known = references(data, data.vocabulary)
    questions = label_questions(data, labels)
    answers, pictures = ask(draw, questions, known, report=progress("labels"))
    if grid is not None:
        save_sheet(grid, pictures, questions)
    everything = references(data, data.records)
    among_all = judge(pictures, [question.record for question in questions], everything)
    others = caption_questions(data, labels)
    held_out = ask(draw, others, known, report=progress("held-out captions"))[0] if others else None
    return Generation(labels=answers, labels_among_all=among_all, held_out_captions=held_out)


def progress(what: str) -> Report:
    """Says the time left on stderr every ten seconds."""
    start = time.monotonic()
    said = [start]

    def report(done: int, total: int) -> None:
        now = time.monotonic()
        if now - said[0] > 10 or done == total:
            said[0] = now
            left = (now - start) / done * (total - done)
            print(f"opensana: {done}/{total} {what}, {left:.0f} s left", file=sys.stderr)

    return report

"""Does the picture show what the prompt says? The nearest reference emoji answers.

A drawn picture and every reference emoji on the background asked for are shrunk to 64 x 64 by area
and compared by squared error. The picture is right when the nearest one belongs to the family of
the prompt's emoji. No judge model is needed, because the truth is known.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.drawing.job import Job
from opensana.drawing.solving import encode, job_noises, solve
from opensana.pictures.pixels import to_images
from opensana.pictures.sheet import contact_sheet
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.workers.progress import Report

SMALL = 64
BATCH = 8
TOP = 5

Item = TypeVar("Item")
Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and seeds to pictures."""


@dataclass(frozen=True)
class Question:
    """A prompt and the emoji that it asks for."""

    prompt: str
    record: Record


@dataclass(frozen=True)
class Answers:
    """Shares of right pictures: the nearest family, and among the five nearest."""

    pictures: int
    top1: float
    top5: float
    error: float
    """Mean squared error to the emoji asked for, pixels in 0..1."""


@dataclass(frozen=True)
class Verdict:
    """How one picture was answered."""

    rank: int
    """The families that are nearer than the one asked for."""
    error: float
    """Mean squared error to the emoji asked for, pixels in 0..1."""


@dataclass(frozen=True)
class References:
    """Emoji on one background, float32 [K, 64 * 64 * 3] in 0..1, and the record of each."""

    pixels: np.ndarray
    records: tuple[Record, ...]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Where each emoji is, by its hexcode."""
        return {record.hexcode: row for row, record in enumerate(self.records)}

    def distances(self, picture: Image.Image) -> np.ndarray:
        """Mean squared errors [K] of a picture."""
        pixels = shrink(np.asarray(picture.convert("RGB")))
        return np.square(self.pixels - pixels).mean(axis=1)

    def families(self, distances: np.ndarray) -> list[str]:
        """All families, the nearest first."""
        order = np.argsort(distances, kind="stable")
        return list(dict.fromkeys(self.records[row].family for row in order))


def label_questions(data: EmojiData, count: int) -> list[Question]:
    """Labels of the vocabulary, the same each time."""
    ordered = shuffled(data.vocabulary, lambda record: record.hexcode)
    return [Question(record.label, record) for record in ordered[:count]]


def caption_questions(data: EmojiData, count: int) -> list[Question]:
    """Captions of the vocabulary that were kept out of training."""
    ordered = shuffled(data.vocabulary, lambda record: record.hexcode)
    pairs = [(record.held_out_caption, record) for record in ordered]
    return [Question(caption.text, record) for caption, record in pairs if caption][:count]


def shuffled(items: Iterable[Item], name: Callable[[Item], str]) -> list[Item]:
    """By a hash of their names: mixed, and the same each time."""
    return sorted(items, key=lambda item: hashlib.sha256(f"ask/{name(item)}".encode()).digest())


def references(data: EmojiData, records: Sequence[Record], background: str = "white") -> References:
    """The emoji that a drawn picture is compared with."""
    scenes = [Scene(emoji=(record.index,), background=background) for record in records]
    pixels = [shrink(compose(scene, data.pictures)) for scene in scenes]
    return References(np.stack(pixels), tuple(records))


def shrink(picture: np.ndarray) -> np.ndarray:
    """A uint8 picture [H, W, 3] averaged over areas to 64 x 64, flat, in 0..1."""
    height, width = picture.shape[:2]
    if height % SMALL or width % SMALL:
        return shrink(np.asarray(Image.fromarray(picture).resize((4 * SMALL, 4 * SMALL))))
    blocks = picture.reshape(SMALL, height // SMALL, SMALL, width // SMALL, 3)
    return (blocks.mean(axis=(1, 3), dtype=np.float32) / 255).reshape(-1)


def ask(
    draw: Draw, questions: Sequence[Question], known: References, *, report: Report | None = None
) -> tuple[Answers, list[Image.Image]]:
    """Draw every question; the figures and the pictures."""
    pictures = draw_all(draw, [question.prompt for question in questions], report=report)
    return judge(pictures, [question.record for question in questions], known), pictures


def draw_all(
    draw: Draw, prompts: Sequence[str], *, report: Report | None = None
) -> list[Image.Image]:
    """Draw every prompt with its own fixed seed."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        pictures += draw(part, range(start, start + len(part)))
        if report is not None:
            report(len(pictures), len(prompts))
    return pictures


def judge(pictures: Sequence[Image.Image], wanted: Sequence[Record], known: References) -> Answers:
    """Compare pictures with the references."""
    return summarise(
        [verdict(picture, record, known) for picture, record in zip(pictures, wanted, strict=True)]
    )


def verdict(picture: Image.Image, wanted: Record, known: References) -> Verdict:
    """Compare one picture with the references."""
    distances = known.distances(picture)
    rank = known.families(distances).index(wanted.family)
    return Verdict(rank, float(distances[known.rows[wanted.hexcode]]))


def summarise(verdicts: Sequence[Verdict]) -> Answers:
    """The figures of one picture or more."""
    assert verdicts
    return Answers(
        pictures=len(verdicts),
        top1=float(np.mean([one.rank == 0 for one in verdicts])),
        top5=float(np.mean([one.rank < TOP for one in verdicts])),
        error=float(np.mean([one.error for one in verdicts])),
    )


def drawer(model: Sana, *, steps: int | None = None, size: int | None = None) -> Draw:
    """Draw different prompts in one batch, square; what is None is the model's own."""
    request = Request("a picture", seed=0, steps=steps, width=size, height=size)

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        drawing = model.for_request(request)
        return to_images(_pixels(drawing, drawing.job(request), prompts, seeds))

    return draw


@torch.inference_mode()
def _pixels(model: Sana, job: Job, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Decoded pixels [B, 3, H, W] of prompts, one seed each; `job` says the rest."""
    texts = encode(model, job, prompts)
    latent = solve(model, job, texts, job_noises(model, job, seeds))
    return model.autoencoder.decode(latent.to(next(model.autoencoder.parameters()).dtype))


# ------------------------------------------------------------------ contact sheet


def save_sheet(
    path: str | Path, pictures: Sequence[Image.Image], questions: Sequence[Question]
) -> None:
    """Write the first 25 pictures as one PNG."""
    names = [question.prompt for question in questions[:25]]
    contact_sheet(pictures[:25], names).save(path, format="PNG")

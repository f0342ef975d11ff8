"""Does the picture show what the prompt says? The nearest reference emoji answers.

A drawn picture and every reference emoji on white are shrunk to 64 x 64 by area and compared by
squared error. The picture is right when the nearest one belongs to the family of the prompt's
emoji. No judge model is needed, because the truth is known.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from opensana.data.emoji.compose import Scene, compose
from opensana.data.emoji.dataset import EmojiData, Record
from opensana.decoding import to_images
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS
from opensana.pipeline import Sana, guided_velocity, uses_guidance
from opensana.request import Request

SMALL = 64
BATCH = 8
TOP = 5

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and seeds to pictures."""
Report = Callable[[int, int], None]
"""Called with the pictures done and their number."""


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
class References:
    """Emoji on white, float32 [K, 64 * 64 * 3] in 0..1, and the family of each."""

    pixels: np.ndarray
    records: tuple[Record, ...]


def label_questions(data: EmojiData, count: int) -> list[Question]:
    """Labels of the vocabulary, the same each time."""
    return [Question(record.label, record) for record in _ordered(data.vocabulary)[:count]]


def caption_questions(data: EmojiData, count: int) -> list[Question]:
    """Captions of the vocabulary that were kept out of training."""
    pairs = [(record.held_out_caption, record) for record in _ordered(data.vocabulary)]
    return [Question(caption.text, record) for caption, record in pairs if caption][:count]


def _ordered(records: Sequence[Record]) -> list[Record]:
    return sorted(records, key=lambda r: hashlib.sha256(f"ask/{r.hexcode}".encode()).digest())


def references(data: EmojiData, records: Sequence[Record]) -> References:
    """The emoji that a drawn picture is compared with."""
    pixels = [shrink(compose(Scene(emoji=(r.index,)), data.pictures)) for r in records]
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
    """Draw every prompt with its own fixed seed; the figures and the pictures."""
    pictures: list[Image.Image] = []
    for start in range(0, len(questions), BATCH):
        part = questions[start : start + BATCH]
        pictures += draw([q.prompt for q in part], range(start, start + len(part)))
        if report is not None:
            report(len(pictures), len(questions))
    return judge(pictures, [question.record for question in questions], known), pictures


def judge(pictures: Sequence[Image.Image], wanted: Sequence[Record], known: References) -> Answers:
    """Compare pictures with the references."""
    assert len(pictures) == len(wanted) > 0
    drawn = np.stack([shrink(np.asarray(picture.convert("RGB"))) for picture in pictures])
    families = [record.family for record in known.records]
    row = {record.hexcode: index for index, record in enumerate(known.records)}
    ranks: list[int] = []
    errors: list[float] = []
    for pixels, record in zip(drawn, wanted, strict=True):
        distances = np.square(known.pixels - pixels).mean(axis=1)
        nearest = dict.fromkeys(families[i] for i in np.argsort(distances, kind="stable"))
        ranks.append(list(nearest).index(record.family))
        errors.append(float(distances[row[record.hexcode]]))
    return Answers(
        pictures=len(ranks),
        top1=float(np.mean([rank == 0 for rank in ranks])),
        top5=float(np.mean([rank < TOP for rank in ranks])),
        error=float(np.mean(errors)),
    )


def drawer(model: Sana) -> Draw:
    """Draw different prompts in one batch, with the model's own steps and guidance."""

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        request = Request(prompts[0], seed=0)
        return to_images(_pixels(model, model.complete(request), prompts, seeds))

    return draw


@torch.inference_mode()
def _pixels(model: Sana, request: Request, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Decoded pixels [B, 3, H, W] of prompts, one seed each; `request` says the rest."""
    transformer, device = model.transformer, model.device
    states = [model.text.encode(list(prompts))]
    if uses_guidance(request.guidance):
        states.append(model.text.encode_plain([request.negative_prompt]))
    prepared = [transformer.prepare_text(s.states.to(device), s.mask.to(device)) for s in states]
    velocities = [
        lambda x, timestep, text=text: transformer.velocity(x, timestep.expand(len(x)), text)
        for text in prepared
    ]
    side = model.native_size // model.autoencoder.compression
    noise = noise_for(seeds, (model.autoencoder.latent_channels, side, side), device)
    assert request.steps is not None
    assert request.guidance is not None
    solver = SOLVERS[request.solver]
    velocity = guided_velocity(velocities, request.guidance)
    latent = solver.solve(velocity, noise, solver.sigmas(request.steps, model.shift))
    return model.autoencoder.decode(latent.to(next(model.autoencoder.parameters()).dtype))


# ------------------------------------------------------------------ contact sheet


def contact_sheet(
    pictures: Sequence[Image.Image], names: Sequence[str], *, columns: int = 5, side: int = 192
) -> Image.Image:
    """Pictures in rows with their names underneath; 25 make a square of five by five."""
    assert len(pictures) == len(names) > 0
    strip, margin = 28, 8
    rows = -(-len(pictures) // columns)
    width = columns * (side + margin) + margin
    sheet = Image.new("RGB", (width, rows * (side + strip + margin) + margin), "white")
    pen = ImageDraw.Draw(sheet)
    cells = _cells(len(pictures), columns, (side + margin, side + strip + margin), margin)
    for (left, top), picture, name in zip(cells, pictures, names, strict=True):
        sheet.paste(picture.convert("RGB").resize((side, side)), (left, top))
        _write(pen, name, (left + side // 2, top + side + 4), side)
    return sheet


def _cells(count: int, columns: int, pitch: tuple[int, int], first: int) -> list[tuple[int, int]]:
    """The top left corners of the pictures, row by row."""
    right, down = pitch
    places = (divmod(index, columns) for index in range(count))
    return [(first + column * right, first + row * down) for row, column in places]


def _write(pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], width: int) -> None:
    """The text centred below its picture, as large as fits."""
    for size in (16, 14, 12, 10, 8):
        font = ImageFont.load_default(size)
        if pen.textlength(text, font=font) <= width:
            break
    pen.text(place, text, fill="black", font=font, anchor="ma")


def save_sheet(
    path: str | Path, pictures: Sequence[Image.Image], questions: Sequence[Question]
) -> None:
    """Write the first 25 pictures as one PNG."""
    names = [question.prompt for question in questions[:25]]
    contact_sheet(pictures[:25], names).save(path, format="PNG")

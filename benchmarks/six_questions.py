"""GenEval's six questions, asked of the emoji model at one guidance or several, with a sheet.

    python -m benchmarks.six_questions [--model emoji-256] [--count 24] [--guidance 1 1.5 2]
        [--steps 4] [--held-out] [--sheet FILE.png]

Settings are chosen by combinations that training may see; `--held-out` asks those that it never
sees, as `opensana evaluate` does. One row a guidance, then how many scenes of each number were
counted right; the last line is JSON. The sheet has a row of a question, with right and wrong
pictures in proportion: right ones have a green frame, wrong ones a red one.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from PIL import Image, ImageOps

from benchmarks.guidance_sweep import row, setting
from benchmarks.timing import machine
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.generator import Vocabulary
from opensana.evaluate import Counts
from opensana.evaluate.emoji.figures import open_or_prepare
from opensana.evaluate.emoji.nearest import (
    Draw,
    References,
    draw_all,
    drawer,
    label_questions,
    references,
    verdict,
)
from opensana.evaluate.emoji.questions import QUESTIONS, Asked, ask_composed
from opensana.pictures.sheet import contact_sheet
from opensana.pipeline import Sana

COLUMNS, SIDE, FRAME = 6, 176, 6
GREEN, RED = (60, 160, 80), (210, 60, 50)
SINGLE = "single_object"

Answer = tuple[str, Image.Image, bool]
"""A prompt, its picture, and whether that is right."""


def single_object(
    draw: Draw, data: EmojiData, everything: References, count: int, *, held_out: bool
) -> list[Answer]:
    """Labels: the nearest of all emoji is the one asked for; other ones to choose by."""
    first = 0 if held_out else Counts.labels
    asked = label_questions(data, first + count)[first:]
    pictures = draw_all(draw, [one.prompt for one in asked])
    return [
        (one.prompt, picture, verdict(picture, one.record, everything).rank == 0)
        for one, picture in zip(asked, pictures, strict=True)
    ]


def in_proportion(answers: Sequence[Answer], count: int = COLUMNS) -> list[Answer]:
    """So many of them, the first right and the first wrong ones, in the proportion of all."""
    good = [one for one in answers if one[2]]
    bad = [one for one in answers if not one[2]]
    shown = round(count * len(good) / len(answers))
    return good[:shown] + bad[: count - shown]


def framed(picture: Image.Image, good: bool) -> Image.Image:
    inner = SIDE - 2 * FRAME
    return ImageOps.expand(picture.resize((inner, inner)), FRAME, GREEN if good else RED)


def save_sheet(path: Path, answers: dict[str, list[Answer]]) -> None:
    shown = [one for each in answers.values() for one in in_proportion(each)]
    pictures = [framed(picture, good) for _, picture, good in shown]
    sheet = contact_sheet(pictures, [name for name, *_ in shown], columns=COLUMNS, side=SIDE)
    sheet.save(path, format="PNG")


def by_number(judged: Sequence[tuple[Asked, Image.Image, bool]]) -> dict[int, str]:
    """The number of objects asked for -> how many of its scenes are right."""
    verdicts: dict[int, list[bool]] = {}
    for asked, _, good in judged:
        verdicts.setdefault(asked.scene.total, []).append(good)
    return {number: f"{sum(each)} of {len(each)}" for number, each in sorted(verdicts.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description="GenEval's questions by guidance.")
    parser.add_argument("--model", default="emoji-256")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--guidance", type=float, nargs="+", default=(1.0,))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--sheet", type=Path, help="of the first guidance")
    arguments = parser.parse_args()
    if arguments.count < COLUMNS:
        parser.error(f"--count is at least {COLUMNS}, one for each column of the sheet")
    data, sana = open_or_prepare(arguments.data), Sana.load(arguments.model)
    vocabulary, everything = Vocabulary(data), references(data, data.records)
    results: dict[str, dict[str, float]] = {}
    counted: dict[str, dict[int, str]] = {}
    names = (SINGLE, *QUESTIONS)
    print(row("guidance", *names, "mean") + "\n" + "|---" * (2 + len(names)) + "|")
    for guidance in arguments.guidance:
        own = setting(sana, shift=sana.shift, guidance=guidance, steps=arguments.steps)
        count, held_out = arguments.count, arguments.held_out
        draw = drawer(own)
        answers = {SINGLE: single_object(draw, data, everything, count, held_out=held_out)}
        composed = ask_composed(draw, vocabulary, count, held_out=held_out)[1]
        for name, judged in composed.items():
            answers[name] = [(asked.prompt, picture, good) for asked, picture, good in judged]
        figures = {name: mean(good for *_, good in each) for name, each in answers.items()}
        results[f"guidance {guidance:g}"] = figures
        cells = [f"{value:.0%}" for value in (*figures.values(), mean(figures.values()))]
        print(row(f"{guidance:g}", *cells), flush=True)
        counted[f"guidance {guidance:g}"] = by_number(composed["counting"])
        if arguments.sheet is not None and guidance == arguments.guidance[0]:
            save_sheet(arguments.sheet, answers)
    for name, numbers in counted.items():
        print(f"counted at {name}: {numbers}")
    print(json.dumps({"machine": machine(), "held_out": arguments.held_out, "results": results}))


if __name__ == "__main__":
    main()

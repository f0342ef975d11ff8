"""GenEval's questions, asked of the emoji model at one guidance or several, and a sheet of answers.

    python -m benchmarks.six_questions [--model emoji-256] [--count 24] [--guidance 1 1.5 2]
        [--steps 4] [--held-out] [--sheet FILE.png]

Settings are chosen by combinations that training may see; `--held-out` asks those that it never
sees, as `opensana evaluate` does. One row a guidance; the last line is JSON. The sheet has a row of
a question, with right and wrong pictures in proportion: each name ends in "right" or "wrong".
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from PIL import Image

from benchmarks.guidance_sweep import row, setting
from benchmarks.timing import machine
from opensana.datasets.emoji.generator import Vocabulary
from opensana.evaluate.emoji.figures import open_or_prepare
from opensana.evaluate.emoji.nearest import drawer
from opensana.evaluate.emoji.questions import QUESTIONS, Asked, ask_composed
from opensana.pictures.sheet import contact_sheet
from opensana.pipeline import Sana

COLUMNS, SIDE = 6, 160

Judged = tuple[Asked, Image.Image, bool]


def in_proportion(judged: Sequence[Judged], count: int = COLUMNS) -> list[Judged]:
    """So many of them, the first right and the first wrong ones, in the proportion of all."""
    good = [one for one in judged if one[2]]
    bad = [one for one in judged if not one[2]]
    shown = round(count * len(good) / len(judged))
    return good[:shown] + bad[: count - shown]


def save_sheet(path: Path, answers: dict[str, list[Judged]]) -> None:
    shown = [one for name in QUESTIONS for one in in_proportion(answers[name])]
    names = [f"{one.prompt}: {'right' if good else 'wrong'}" for one, _, good in shown]
    sheet = contact_sheet([picture for _, picture, _ in shown], names, columns=COLUMNS, side=SIDE)
    sheet.save(path, format="PNG")


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
    vocabulary = Vocabulary(open_or_prepare(arguments.data))
    sana = Sana.load(arguments.model)
    results: dict[str, dict[str, float]] = {}
    print(row("guidance", *QUESTIONS, "mean") + "\n" + "|---" * (2 + len(QUESTIONS)) + "|")
    for guidance in arguments.guidance:
        own = setting(sana, shift=sana.shift, guidance=guidance, steps=arguments.steps)
        shares, answers = ask_composed(
            drawer(own), vocabulary, arguments.count, held_out=arguments.held_out
        )
        figures = {name: asdict(shares)[name] for name in QUESTIONS}
        results[f"guidance {guidance:g}"] = figures
        cells = [f"{value:.0%}" for value in (*figures.values(), mean(figures.values()))]
        print(row(f"{guidance:g}", *cells), flush=True)
        if arguments.sheet is not None and guidance == arguments.guidance[0]:
            save_sheet(arguments.sheet, answers)
    print(json.dumps({"machine": machine(), "held_out": arguments.held_out, "results": results}))


if __name__ == "__main__":
    main()

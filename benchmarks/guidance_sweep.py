"""Which guidance and which shift a model of the emoji set draws best with.

    python -m benchmarks.guidance_sweep [--model emoji-256] [--labels 60] [--colours 60]
        [--pairs 60] [--plot FILE.png] [--strip FILE.png]

Labels, labels on colours and pairs of the training set are those that `opensana evaluate` does not
ask for, so that its figures are not tuned on. One row a setting: labels nearest right, among five
and their error; colours within the just noticeable; pairs right and in order. The plot has a curve
a shift, the strip the first labels at every guidance of the model's own shift, or of the first one.
The last line is JSON.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from benchmarks.timing import machine
from opensana.evaluate import Counts
from opensana.evaluate.colours import ask_colours, colour_questions
from opensana.evaluate.emoji import open_or_prepare
from opensana.evaluate.generation import (
    Question,
    ask,
    contact_sheet,
    drawer,
    label_questions,
    references,
)
from opensana.evaluate.grounds import halves, whole
from opensana.evaluate.pairs import ask_pairs, pair_questions
from opensana.pipeline import Sana
from opensana.train.plot import plot

EVALUATED = Counts()
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.5)
SHIFTS = (1.0, 3.0)
METRICS = {
    "top1": "share of labels drawn right",
    "top5": "share of labels among the five nearest",
    "error": "mean squared error to the emoji",
    "colours": "share of grounds in the colour asked for",
    "pairs": "share of pairs that are right and in order",
}
SHOWN, SIDE = 8, 128

Drawn = dict[float, list[Image.Image]]
"""Guidance to pictures."""


def setting(sana: Sana, *, shift: float, guidance: float, steps: int) -> Sana:
    """The model with these for its own."""
    notes = replace(sana.info.notes, guidance=guidance, steps=steps)
    return replace(sana, info=replace(sana.info, shift=shift, notes=notes))


def save_strip(path: Path, drawn: Drawn, questions: list[Question]) -> None:
    """A row a label, a column a guidance."""
    shown = questions[:SHOWN]
    pictures = [own[row] for row in range(len(shown)) for own in drawn.values()]
    names = [f"{question.prompt}, {guidance:g}" for question in shown for guidance in drawn]
    contact_sheet(pictures, names, columns=len(drawn), side=SIDE).save(path, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures by guidance and shift.")
    parser.add_argument("--model", default="emoji-256")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    for kind in ("labels", "colours", "pairs"):
        parser.add_argument(f"--{kind}", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--metric", choices=METRICS, default="top1", help="what the plot shows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--strip", type=Path)
    arguments = parser.parse_args()
    data, sana = open_or_prepare(arguments.data), Sana.load(arguments.model)
    questions = label_questions(data, EVALUATED.labels + arguments.labels)[EVALUATED.labels :]
    on_colours = colour_questions(data, EVALUATED.colours + arguments.colours)[EVALUATED.colours :]
    pairs = pair_questions(data, EVALUATED.pairs + arguments.pairs, held_out=False)
    known, grounds = references(data, data.records), whole(data, data.vocabulary)
    boxes = halves(data, data.vocabulary)
    curves: dict[str, list[tuple[float, float]]] = {}
    results: dict[str, dict[str, dict[str, float]]] = {}
    drawn: dict[float, Drawn] = {}
    print(
        "| shift | guidance | nearest | among five | error | colours | pairs |\n" + "|---" * 7 + "|"
    )
    for shift in arguments.shifts:
        name = f"shift {shift:g}"
        results[name], curves[name], drawn[shift] = {}, [], {}
        for guidance in arguments.guidance:
            own = setting(sana, shift=shift, guidance=guidance, steps=arguments.steps)
            draw = drawer(own)
            answers, drawn[shift][guidance] = ask(draw, questions, known)
            figures = asdict(answers) | {
                "colours": ask_colours(draw, on_colours, grounds).just_noticeable,
                "pairs": ask_pairs(draw, pairs[EVALUATED.pairs :], boxes).in_order,
            }
            results[name][f"guidance {guidance:g}"] = figures
            curves[name].append((guidance, figures[arguments.metric]))
            print(
                f"| {shift:g} | {guidance:g} | {answers.top1:.0%} | {answers.top5:.0%} "
                f"| {answers.error:.4f} | {figures['colours']:.0%} | {figures['pairs']:.0%} |",
                flush=True,
            )
    if arguments.plot is not None:
        plot(arguments.plot, curves, label=METRICS[arguments.metric], across_label="guidance")
    if arguments.strip is not None:
        shown = drawn.get(sana.shift, drawn[arguments.shifts[0]])
        save_strip(arguments.strip, shown, questions)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()

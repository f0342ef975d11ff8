"""Which guidance and which shift a model of the emoji set draws best with.

    python -m benchmarks.guidance_sweep [--model emoji-256] [--labels 100] [--plot FILE.png]
        [--strip FILE.png]

The labels are those of the vocabulary that `opensana evaluate` does not ask for, so that its
figures are not tuned on. One row a setting: nearest right, among five, error. The plot has a curve
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
from opensana.evaluate.emoji import open_or_prepare
from opensana.evaluate.generation import (
    Question,
    ask,
    contact_sheet,
    drawer,
    label_questions,
    references,
)
from opensana.pipeline import Sana
from opensana.train.plot import plot

EVALUATED = Counts.labels
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.5)
SHIFTS = (1.0, 3.0)
METRICS = {
    "top1": "share of labels drawn right",
    "top5": "share of labels among the five nearest",
    "error": "mean squared error to the emoji",
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
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--metric", choices=METRICS, default="top1", help="what the plot shows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--strip", type=Path)
    arguments = parser.parse_args()
    data, sana = open_or_prepare(arguments.data), Sana.load(arguments.model)
    questions = label_questions(data, EVALUATED + arguments.labels)[EVALUATED:]
    known = references(data, data.records)
    curves: dict[str, list[tuple[float, float]]] = {}
    results: dict[str, dict[str, dict[str, float]]] = {}
    drawn: dict[float, Drawn] = {}
    print("| shift | guidance | nearest | among five | error |\n|---|---|---|---|---|")
    for shift in arguments.shifts:
        name = f"shift {shift:g}"
        results[name], curves[name], drawn[shift] = {}, [], {}
        for guidance in arguments.guidance:
            own = setting(sana, shift=shift, guidance=guidance, steps=arguments.steps)
            answers, drawn[shift][guidance] = ask(drawer(own), questions, known)
            results[name][f"guidance {guidance:g}"] = asdict(answers)
            curves[name].append((guidance, asdict(answers)[arguments.metric]))
            print(
                f"| {shift:g} | {guidance:g} | {answers.top1:.0%} | {answers.top5:.0%} "
                f"| {answers.error:.4f} |",
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

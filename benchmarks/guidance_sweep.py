"""Which guidance and which shift a model of the emoji set draws best with.

    python -m benchmarks.guidance_sweep [--model emoji-256] [--labels 60] [--keywords 60]
        [--colours 60] [--pairs 60] [--plot FILE.png] [--strip FILE.png]

Labels, keywords, labels on colours and pairs of the training set are those that `opensana evaluate`
does not ask for, so that its figures are not tuned on. One row a setting: labels nearest right,
among five and their error; single words that were trained on for one emoji alone, nearest right;
colours within the just noticeable; pairs right and in order. The plot has a curve
a shift, the strip the first labels at every guidance of the model's own shift, or of the first one.
The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from PIL import Image

from benchmarks.timing import machine
from opensana.datasets.emoji.dataset import EmojiData
from opensana.datasets.emoji.prompts import KEYWORD_WEIGHT, keywords_of
from opensana.evaluate import Counts
from opensana.evaluate.emoji.backgrounds import Backgrounds, halves, whole
from opensana.evaluate.emoji.colours import ColourQuestion, ask_colours, colour_questions
from opensana.evaluate.emoji.figures import open_or_prepare
from opensana.evaluate.emoji.nearest import (
    Draw,
    Question,
    References,
    ask,
    drawer,
    label_questions,
    references,
    shuffled,
)
from opensana.evaluate.emoji.pairs import PairQuestion, ask_pairs, pair_questions
from opensana.pictures.sheet import contact_sheet
from opensana.pipeline import Sana
from opensana.train.monitor.plot import plot

EVALUATED = Counts()
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.5)
SHIFTS = (1.0, 3.0)
METRICS = {
    "top1": "share of labels drawn right",
    "top5": "share of labels among the five nearest",
    "error": "mean squared error to the emoji",
    "keywords": "share of keywords drawn right",
    "colours": "share of grounds in the colour asked for",
    "pairs": "share of pairs that are right and in order",
}
ASKED = ("labels", "keywords", "colours", "pairs")
SHOWN, SIDE = 8, 128

Drawn = dict[float, list[Image.Image]]
"""Guidance to pictures."""


@dataclass(frozen=True)
class Exam:
    """Questions that `opensana evaluate` does not ask, and what the pictures are compared with."""

    labels: list[Question]
    keywords: list[Question]
    colours: list[ColourQuestion]
    pairs: list[PairQuestion]
    everything: References
    vocabulary: References
    backgrounds: Backgrounds
    boxes: Backgrounds

    @classmethod
    def of(cls, data: EmojiData, *, labels: int, keywords: int, colours: int, pairs: int) -> "Exam":
        known, taken = data.vocabulary, EVALUATED
        return cls(
            labels=label_questions(data, taken.labels + labels)[taken.labels :],
            keywords=keyword_questions(data, keywords),
            colours=colour_questions(data, taken.colours + colours)[taken.colours :],
            pairs=pair_questions(data, taken.pairs + pairs, held_out=False)[taken.pairs :],
            everything=references(data, data.records),
            vocabulary=references(data, known),
            backgrounds=whole(data, known),
            boxes=halves(data, known),
        )

    def sit(self, draw: Draw) -> tuple[dict[str, float], list[Image.Image]]:
        """The figures, and the pictures of the labels."""
        answers, pictures = ask(draw, self.labels, self.everything)
        figures = asdict(answers) | {
            "keywords": ask(draw, self.keywords, self.vocabulary)[0].top1,
            "colours": ask_colours(draw, self.colours, self.backgrounds).just_noticeable,
            "pairs": ask_pairs(draw, self.pairs, self.boxes).in_order,
        }
        return figures, pictures


def keyword_questions(data: EmojiData, count: int | None = None) -> list[Question]:
    """Single words of training that belong to one emoji alone, all of them or `count`."""
    records = data.vocabulary
    alone = [
        Question(prompt.text, record)
        for record, prompts in zip(records, keywords_of(records), strict=True)
        for prompt in prompts
        if prompt.weight == KEYWORD_WEIGHT
    ]
    return shuffled(alone, lambda question: question.prompt)[:count]


def setting(sana: Sana, *, shift: float, guidance: float, steps: int) -> Sana:
    """The model with these for its own."""
    defaults = replace(sana.info.defaults, guidance=guidance, steps=steps)
    return replace(sana, info=replace(sana.info, shift=shift, defaults=defaults))


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def shown(metric: str, value: float) -> str:
    return f"{value:.4f}" if metric == "error" else f"{value:.0%}"


def save_strip(path: Path, drawn: Drawn, questions: Sequence[Question]) -> None:
    """A row a label, a column a guidance."""
    some = questions[:SHOWN]
    pictures = [own[index] for index in range(len(some)) for own in drawn.values()]
    names = [f"{question.prompt}, {guidance:g}" for question in some for guidance in drawn]
    contact_sheet(pictures, names, columns=len(drawn), side=SIDE).save(path, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures by guidance and shift.")
    parser.add_argument("--model", default="emoji-256")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    for kind in ASKED:
        parser.add_argument(f"--{kind}", type=int, default=60)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    parser.add_argument("--metric", choices=METRICS, default="top1", help="what the plot shows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--strip", type=Path)
    arguments = parser.parse_args()
    data, sana = open_or_prepare(arguments.data), Sana.load(arguments.model)
    exam = Exam.of(data, **{kind: getattr(arguments, kind) for kind in ASKED})
    curves: dict[str, list[tuple[float, float]]] = {}
    results: dict[str, dict[str, dict[str, float]]] = {}
    drawn: dict[float, Drawn] = {}
    print(row("shift", "guidance", *METRICS) + "\n" + "|---" * (2 + len(METRICS)) + "|")
    for shift in arguments.shifts:
        name = f"shift {shift:g}"
        results[name], curves[name], drawn[shift] = {}, [], {}
        for guidance in arguments.guidance:
            own = setting(sana, shift=shift, guidance=guidance, steps=arguments.steps)
            figures, drawn[shift][guidance] = exam.sit(drawer(own))
            results[name][f"guidance {guidance:g}"] = figures
            curves[name].append((guidance, figures[arguments.metric]))
            cells = [shown(metric, figures[metric]) for metric in METRICS]
            print(row(f"{shift:g}", f"{guidance:g}", *cells), flush=True)
    if arguments.plot is not None:
        plot(arguments.plot, curves, label=METRICS[arguments.metric], across_label="guidance")
    if arguments.strip is not None:
        save_strip(arguments.strip, drawn.get(sana.shift, drawn[arguments.shifts[0]]), exam.labels)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()

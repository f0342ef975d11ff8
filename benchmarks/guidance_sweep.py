"""Which guidance and how many steps a model of the emoji set draws best with.

    python benchmarks/guidance_sweep.py [--model emoji-256] [--labels 100]

The labels are those of the vocabulary that `opensana evaluate` does not ask for, so that its
figures are not tuned on. One row a setting; the last line is JSON.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from opensana.evaluate.emoji import open_or_prepare
from opensana.evaluate.generation import ask, drawer, label_questions, references
from opensana.pipeline import Sana

EVALUATED = 200
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.5)
SHIFTS = (1.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Figures by guidance and shift.")
    parser.add_argument("--model", default="emoji-256")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--shifts", type=float, nargs="+", default=SHIFTS)
    arguments = parser.parse_args()
    data, sana = open_or_prepare(arguments.data), Sana.load(arguments.model)
    questions = label_questions(data, EVALUATED + arguments.labels)[EVALUATED:]
    known = references(data, data.records)
    results = []
    for shift in arguments.shifts:
        for guidance in arguments.guidance:
            notes = replace(sana.info.notes, guidance=guidance, steps=arguments.steps)
            setting = replace(sana, info=replace(sana.info, shift=shift, notes=notes))
            answers, _ = ask(drawer(setting), questions, known)
            results.append({"shift": shift, "guidance": guidance, **asdict(answers)})
            print(
                f"| {shift:g} | {guidance:g} | {answers.top1:.0%} | {answers.top5:.0%} "
                f"| {answers.error:.4f} |",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()

"""`opensana evaluate`: the figures of a model on the emoji set (README, "How good is it?")."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit, emit_json, table
from opensana.cli.output import check_file
from opensana.evaluate.emoji.counts import Counts
from opensana.models.options import Model


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure reconstruction and prompt-following on the emoji set."""

    model: Positional[Model]
    data: Annotated[Path, arg(metavar="FOLDER")] = Path("data/emoji")
    """The set that recipes/emoji/prepare.py made."""
    labels: int = Counts.labels
    """How many labels to draw."""
    captions: int = Counts.captions
    """How many captions that were kept out of training, at most; 0 for none."""
    colours: int = Counts.colours
    """How many labels on colours; 0 for none."""
    pairs: int = Counts.pairs
    """How many pairs of the training set and as many that were kept out of it; 0 for none."""
    questions: int = Counts.questions
    """How many scenes of each of GenEval's questions: two objects, counting, colours, position,
    colour attribution; 0 for none."""
    languages: int = Counts.languages
    """How many labels of each of ten other languages, and emoji characters, at most; 0 for none."""
    steps: Annotated[int | None, arg(metavar="N")] = None
    """Draw in so many steps; left out, what the model recommends."""
    size: Annotated[int | None, arg(metavar="N")] = None
    """Draw squares of so many pixels; left out, what the model recommends."""
    grid: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write a PNG grid of drawn pictures here."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        if self.grid is not None:
            check_file(self.grid)
        from opensana.evaluate import evaluate_emoji

        counts = Counts(
            self.labels,
            self.captions,
            self.colours,
            self.pairs,
            self.questions,
            self.languages,
        )
        figures = evaluate_emoji(
            self.model,
            self.data,
            counts=counts,
            grid=self.grid,
            steps=self.steps,
            size=self.size,
        )
        if self.json:
            emit_json(figures)
        else:
            emit("\n".join(table(figures)))

"""`opensana evaluate`: the figures of a model on the emoji set (README, "How good is it?").

With --benchmark: on any pictures with prompts (docs/evaluation.md).
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from opensana.cli.command import Command, aligned, emit, emit_json, table
from opensana.cli.output import check_file
from opensana.errors import RequestError
from opensana.evaluate.emoji.counts import Counts
from opensana.models.options import Device, Model


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure a model on the emoji set, or with --benchmark on any pictures with prompts."""

    model: Positional[Model] = ""
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
    benchmark: Annotated[str | None, arg(metavar="FOLDER")] = None
    """Compare with these pictures and their prompts: MJHQ-30K's layout, or any data set that
    `opensana data inspect` reads. The flags below belong to it."""
    pictures: Annotated[str, arg(metavar="FOLDER")] = ""
    """Measure these pictures instead of drawing with a model."""
    to: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where drawn pictures, features, statistics and figures are kept; the same command resumes."""
    inception: Annotated[Path | None, arg(metavar="PATH")] = None
    """Inception's weights, made by `opensana convert --preset inception_fid`, or the published
    .pth; for FID, KID, precision, recall, density and coverage."""
    clip: Annotated[str | None, arg(metavar="MODEL")] = None
    """A CLIP by folder or hub id; for CMMD and the CLIP score."""
    protocol: Literal["sana", "clean"] = "sana"
    """How pictures are resized for Inception: as Sana's own evaluation does, or as clean-fid."""
    reference: Annotated[Path | None, arg(metavar="FILE")] = None
    """Statistics (an npz of mu and sigma) instead of the benchmark's pictures; FID alone."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """At most so many pictures, evenly spaced; left out, all."""
    seed: int = 0
    """The first picture's seed; the next ones follow."""
    batch: int = 16
    """Pictures seen at once."""
    bootstrap: int = 20
    """Resamplings for the interval of FID; 0 for none."""
    part: Annotated[str | None, arg(metavar="K/N")] = None
    """Draw and see every N-th picture from the K-th on and compare nothing: for N processes at
    once. The command without it then joins what they found."""
    device: Device = "auto"
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        own = BENCHMARK_FLAGS if self.benchmark is None else EMOJI_FLAGS
        for field in fields(self):
            if field.name in own and getattr(self, field.name) != field.default:
                belongs = "needs" if self.benchmark is None else "does not go with"
                raise RequestError(f"--{field.name} {belongs} --benchmark")
        if self.benchmark is not None:
            self._run_benchmark(self.benchmark)
            return
        if not self.model:
            raise RequestError("name a model, such as emoji-256")
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

    def _run_benchmark(self, benchmark: str) -> None:
        if self.to is None:
            raise RequestError("--benchmark needs --to FOLDER, where pictures and figures are kept")
        if self.bootstrap < 0:
            raise RequestError(f"bootstrap must be 0 or more, got {self.bootstrap}")
        from opensana.evaluate.benchmark.judges import open_judges
        from opensana.evaluate.benchmark.run import Options, evaluate_benchmark

        options = Options(
            model=str(self.model),
            pictures=self.pictures,
            benchmark=benchmark,
            protocol=self.protocol,
            limit=self.limit,
            size=self.size,
            steps=self.steps,
            seed=self.seed,
            batch=self.batch,
        )
        figures = evaluate_benchmark(
            options,
            self.to,
            open_judges(self.inception, self.clip, device=self.device),
            reference=self.reference,
            replicates=self.bootstrap,
            part=_part(self.part),
            device=self.device,
        )
        if self.json:
            emit_json(figures)
        else:
            emit("\n".join(_lines(figures)))


BENCHMARK_FLAGS = frozenset(
    {"pictures", "to", "inception", "clip", "protocol", "reference", "limit", "seed", "batch"}
    | {"bootstrap", "part", "device"}
)
EMOJI_FLAGS = frozenset(
    {"data", "labels", "captions", "colours", "pairs", "questions", "languages", "grid"}
)


def _part(text: str | None) -> tuple[int, int]:
    """K/N as numbers."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text or "1/1")
    part = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part[0] <= part[1]:
        raise RequestError(f"part is K/N with K from 1 to N, such as 1/4; got {text!r}")
    return part


def _lines(figures: dict[str, Any]) -> list[str]:
    """Every figure with its interval and protocol, then those of the categories."""
    found, categories = figures.pop("figures", None), figures.pop("categories", {})
    lines = table(figures)
    if found is not None:
        rows = [["", "value", "95 % interval", "protocol"]]
        for name, figure in found.items():
            known = "low" in figure
            between = f"{figure['low']:.5g} to {figure['high']:.5g}" if known else ""
            rows.append([name, f"{figure['value']:.5g}", between, figure["protocol"]])
        lines += ["", *aligned(rows)]
    if categories:
        names = dict.fromkeys(name for figures in categories.values() for name in figures)
        heads = [
            name if name == "pictures" or found is None else f"{name} [{found[name]['protocol']}]"
            for name in names
        ]
        cells = [
            [category, *(_value(figures.get(name)) for name in names)]
            for category, figures in categories.items()
        ]
        lines += ["", *aligned([["", *heads], *cells])]
    return lines


def _value(figure: Any) -> str:
    return f"{figure['value']:.5g}" if isinstance(figure, dict) else str(figure or "")

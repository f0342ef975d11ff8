"""`opensana evaluate`: the figures of a model on the emoji set (README, "How good is it?").

With --benchmark: on any pictures with prompts; with --geneval or --dpg: whether pictures show what
their prompts ask for (docs/evaluation.md).
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from tyro.conf import Positional, arg

from opensana.cli.command import Command, aligned, emit, emit_json, table
from opensana.cli.output import check_file
from opensana.errors import RequestError
from opensana.evaluate.emoji.counts import Counts
from opensana.models.options import Device, Model

if TYPE_CHECKING:
    from opensana.evaluate.prompts import dpg_judge, geneval_judge


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure a model on the emoji set, with --benchmark on any pictures with prompts, or with
    --geneval or --dpg on what their prompts ask for.
    """

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
    `opensana data inspect` reads."""
    geneval: Annotated[str | None, arg(metavar="FILE")] = None
    """Draw the prompts of GenEval's evaluation_metadata.jsonl into its folders."""
    dpg: Annotated[str | None, arg(metavar="FILE")] = None
    """Draw the prompts of DPG-Bench's dpg_bench.csv as its tool reads them."""
    images: int = 4
    """Pictures of each prompt of GenEval or DPG-Bench."""
    results: Annotated[Path | None, arg(metavar="FILE")] = None
    """What the tool of GenEval or DPG-Bench wrote about these pictures: report it."""
    detector: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Answer GenEval's questions by this object detector of transformers, and --clip for colours.
    The figures do not compare with published ones."""
    ask: Annotated[str | None, arg(metavar="URL#MODEL")] = None
    """Answer DPG-Bench's questions by this model behind /chat/completions, such as
    http://127.0.0.1:8000/v1#MODEL. The figures do not compare with published ones."""
    pictures: Annotated[str, arg(metavar="FOLDER")] = ""
    """Measure these pictures instead of drawing with a model."""
    to: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where drawn pictures, features, statistics and figures are kept; the same command resumes."""
    inception: Annotated[Path | None, arg(metavar="PATH")] = None
    """Inception's weights, made by `opensana convert --preset inception_fid`, or the published
    .pth; for FID, KID, precision, recall, density and coverage."""
    clip: Annotated[str | None, arg(metavar="MODEL")] = None
    """A CLIP by folder or hub id; for CMMD and the CLIP score, or GenEval's colours."""
    protocol: Literal["sana", "clean"] = "sana"
    """How pictures are resized for Inception: as Sana's own evaluation does, or as clean-fid."""
    reference: Annotated[Path | None, arg(metavar="FILE")] = None
    """Statistics (an npz of mu and sigma) instead of the benchmark's pictures; FID alone."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """At most so many pictures or prompts, evenly spaced; left out, all."""
    seed: int = 0
    """The first picture's seed; the next ones follow."""
    batch: int = 16
    """Pictures seen at once; with --ask, requests at once."""
    bootstrap: int = 20
    """Resamplings for the interval of FID; 0 for none."""
    part: Annotated[str | None, arg(metavar="K/N")] = None
    """Draw and see every N-th picture from the K-th on and compare nothing: for N processes at
    once. The command without it then joins what they found."""
    device: Device = "auto"
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        mode = self._mode()
        for field in fields(self):
            modes = BELONGS.get(field.name, MODES)
            if mode not in modes and getattr(self, field.name) != field.default:
                others = " or ".join(f"--{name}" for name in modes if name)
                belongs = f"does not go with --{mode}" if mode else f"needs {others}"
                raise RequestError(f"--{field.name} {belongs}")
        if mode and self.to is None:
            raise RequestError(f"--{mode} needs --to FOLDER, where pictures and figures are kept")
        if mode:
            figures = self._run_benchmark() if mode == "benchmark" else self._run_prompts(mode)
            if self.json:
                emit_json(figures)
            else:
                emit("\n".join(_lines(figures)))
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

    def _mode(self) -> str:
        """The flag that says what is measured; "" for the emoji set."""
        given = [name for name in MODES if name and getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(f"--{given[0]} does not go with --{given[1]}")
        return given[0] if given else ""

    def _run_prompts(self, mode: str) -> dict[str, Any]:
        assert self.to is not None
        from opensana.evaluate.prompts.drawing import Options

        options = Options(
            model=str(self.model),
            prompts=str(self.geneval or self.dpg),
            images=self.images,
            limit=self.limit,
            size=self.size,
            steps=self.steps,
            seed=self.seed,
        )
        if mode == "geneval":
            from opensana.evaluate.prompts.geneval import evaluate_geneval

            judge = self._geneval_judge()
            return evaluate_geneval(
                options, self.to, judge=judge, results=self.results, device=self.device
            )
        from opensana.evaluate.prompts.dpg import evaluate_dpg

        asked = self._dpg_judge()
        return evaluate_dpg(options, self.to, judge=asked, results=self.results, device=self.device)

    def _geneval_judge(self) -> "geneval_judge.Judge | None":
        if self.detector is None:
            if self.clip is not None:
                raise RequestError("--clip needs --detector, which finds what has a colour")
            return None
        from opensana.evaluate.prompts.detector import ObjectDetector
        from opensana.evaluate.prompts.geneval_judge import Embeds, Judge
        from opensana.metrics.open_scorer import open_scorer

        clip = None if self.clip is None else open_scorer(self.clip, device=self.device)
        return Judge(ObjectDetector(self.detector, device=self.device), cast("Embeds | None", clip))

    def _dpg_judge(self) -> "dpg_judge.Judge | None":
        if self.ask is None:
            return None
        from opensana.evaluate.prompts.dpg_judge import Judge
        from opensana.label.captioner import Settings
        from opensana.label.endpoint import EndpointCaptioner
        from opensana.label.opening import check_spec

        check_spec(self.ask)
        url, _, name = self.ask.partition("#")
        if not url.startswith("http"):
            raise RequestError(
                f"--ask is an address such as http://127.0.0.1:8000/v1#MODEL, got {url}"
            )
        settings = Settings(max_tokens=ANSWER_TOKENS, batch=self.batch)
        return Judge(name, EndpointCaptioner(url, name, settings).ask)

    def _run_benchmark(self) -> dict[str, Any]:
        assert self.to is not None
        if self.bootstrap < 0:
            raise RequestError(f"bootstrap must be 0 or more, got {self.bootstrap}")
        from opensana.evaluate.benchmark.judges import open_judges
        from opensana.evaluate.benchmark.run import Options, evaluate_benchmark

        options = Options(
            model=str(self.model),
            pictures=self.pictures,
            benchmark=str(self.benchmark),
            protocol=self.protocol,
            limit=self.limit,
            size=self.size,
            steps=self.steps,
            seed=self.seed,
            batch=self.batch,
        )
        return evaluate_benchmark(
            options,
            self.to,
            open_judges(self.inception, self.clip, device=self.device),
            reference=self.reference,
            replicates=self.bootstrap,
            part=_part(self.part),
            device=self.device,
        )


MODES = ("", "benchmark", "geneval", "dpg")
DRAWN = MODES[1:]
BELONGS = {
    **dict.fromkeys(("data", "labels", "captions", "colours", "pairs", "questions"), ("",)),
    **dict.fromkeys(("languages", "grid"), ("",)),
    **dict.fromkeys(("pictures", "inception", "protocol", "reference"), ("benchmark",)),
    **dict.fromkeys(("bootstrap", "part"), ("benchmark",)),
    **dict.fromkeys(("images", "results"), ("geneval", "dpg")),
    **dict.fromkeys(("to", "limit", "seed", "device"), DRAWN),
    "batch": ("benchmark", "dpg"),
    "clip": ("benchmark", "geneval"),
    "detector": ("geneval",),
    "ask": ("dpg",),
}
"""The modes that a flag belongs to; all, where it is not named."""
ANSWER_TOKENS = 16


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

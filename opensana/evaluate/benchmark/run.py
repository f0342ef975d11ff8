"""`opensana evaluate --benchmark`: draw, extract features, compare; the same command resumes.

The folder of a run keeps everything: settings, drawn pictures, features, statistics, figures and
some examples for a report.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from opensana.device import resolve_device
from opensana.errors import DataError, RequestError
from opensana.evaluate.benchmark import features as extraction
from opensana.evaluate.benchmark import figures as figuring
from opensana.evaluate.benchmark.figures import Figure
from opensana.evaluate.benchmark.judges import LACKING, NO_JUDGE, Judges, weights_of
from opensana.evaluate.benchmark.pictures import Pictures, matched, open_pictures
from opensana.evaluate.benchmark.protocol import PROTOCOLS, ProtocolName, described
from opensana.evaluate.benchmark.statistics import moments_of, read_statistics, write_statistics
from opensana.evaluate.emoji.nearest import drawer
from opensana.evaluate.folder import (
    FIGURES,
    REFERENCE,
    SHOWN,
    Example,
    Shown,
    check_settings,
    spread,
    write_examples,
)
from opensana.files.writing import write_atomic, write_json
from opensana.metrics.frechet import Gaussian
from opensana.pictures.decode import decode
from opensana.pipeline import Sana
from opensana.workers.progress import progress

DRAWN = "drawn"
"""The column of the pictures that are measured."""


@dataclass(frozen=True)
class Options:
    """What the figures depend on; a folder that was begun with others is refused."""

    model: str
    pictures: str
    benchmark: str
    protocol: ProtocolName = "sana"
    limit: int | None = None
    size: int | None = None
    steps: int | None = None
    seed: int = 0
    batch: int = 16

    def __post_init__(self) -> None:
        if bool(self.model) == bool(self.pictures):
            raise RequestError("name a model that draws, or --pictures that are drawn: one of them")
        if min(self.batch, 1 if self.limit is None else self.limit) < 1:
            raise RequestError(f"batch and limit must be 1 or more, got {self.batch}, {self.limit}")


def evaluate_benchmark(
    options: Options,
    to: str | Path,
    judges: Judges,
    *,
    reference: str | Path | None = None,
    replicates: int = 20,
    part: extraction.Part = (1, 1),
    device: str = "auto",
) -> dict[str, Any]:
    """The figures as a nested dictionary, which is also written to `to/figures.json`.

    `reference` is a file of `mu` and `sigma`; then the benchmark's pictures are not needed, and FID
    is the only figure that compares with them. `part` (k, n) draws and sees every n-th picture and
    compares nothing unless n is 1: n processes at once, and then one that compares.
    """
    if judges.inception is None and judges.clip is None:
        raise RequestError(NO_JUDGE)
    statistics = None if reference is None else read_statistics(reference)
    benchmark, folder = open_pictures(options.benchmark).chosen(options.limit), Path(to)
    weights = {"weights": weights_of(options.model)} if options.model else {}
    check_settings(folder, asdict(options) | weights | {"judges": judges.names()})
    paired: Pictures | None = benchmark
    if options.pictures:
        drawn = open_pictures(options.pictures)
        ordered = matched(drawn, benchmark)
        drawn = drawn.chosen(options.limit) if ordered is None else ordered
        paired = None if ordered is None else benchmark
    else:
        drawn = _draw(options, benchmark, folder / "pictures", part, device)
    own = extraction.rows_of(part, len(drawn))
    if not own:
        raise RequestError(f"part {part[0]}/{part[1]} has nothing of {len(drawn)} pictures to do")
    size = options.size or min(drawn.read(own[0]).shape[:2])
    extractors = extraction.extractors(
        judges, PROTOCOLS[options.protocol], size, resolve_device(device)
    )
    seeing = extraction.Seeing(folder, extractors, options.batch)
    sets = {"features": drawn} | ({"reference": benchmark} if reference is None else {})
    if part[1] > 1:
        for name, pictures in sets.items():
            seeing.part(name, pictures, part)
        return {"part": f"{part[0]}/{part[1]}", "pictures": len(own), "of": len(drawn)}
    found = {name: seeing.all(name, pictures) for name, pictures in sets.items()}
    real = found.get("reference", {})
    run = _Run(
        *(found["features"], real, statistics, judges, options.protocol, size, paired),
        replicates=replicates,
    )
    figures = run.all(folder)
    figures = {
        "pictures": len(drawn),
        "reference": str(reference) if reference else f"{options.benchmark} ({len(benchmark)})",
        **figures,
    }
    sheet = _examples(options, drawn, paired, run, shown=reference is None)
    write_examples(folder, {"Evenly spaced": sheet})
    write_json(folder / FIGURES, figures)
    return figures


def _examples(
    options: Options, drawn: Pictures, paired: Pictures | None, run: "_Run", *, shown: bool
) -> Iterator[Example]:
    """Some pictures beside those of the benchmark, if those are there and belong to them."""
    for row in spread(len(drawn), SHOWN):
        columns, item = {}, (drawn if paired is None else paired).items[row]
        if paired is not None and shown:
            columns[REFERENCE] = Shown(Image.fromarray(paired.read(row)))
        caption = "" if run.scores is None else f"CLIP {run.scores[row]:.1f}"
        seed = options.seed + row if options.model else None
        columns[DRAWN] = Shown(Image.fromarray(drawn.read(row)), caption, seed)
        yield Example(item.key, item.prompt, columns)


@dataclass(frozen=True)
class _Run:
    """Features of drawn and reference pictures, from which all figures follow."""

    drawn: Mapping[str, np.ndarray]
    real: Mapping[str, np.ndarray]
    statistics: Gaussian | None
    judges: Judges
    protocol: str
    size: int
    paired: Pictures | None
    """The benchmark, where picture and prompt belong together; None where they are unordered."""
    replicates: int

    def all(self, folder: Path) -> dict[str, Any]:
        prompts = self.scores
        whole = self._figures(slice(None), prompts, replicates=self.replicates, overlaps=True)
        self._write_statistics(folder)
        found: dict[str, Any] = {
            "protocol": described(self.protocol, self.size),
            "figures": figuring.plain(whole),
        }
        categories = [item.category for item in self.paired.items] if self.paired else []
        rows = figuring.rows_by_category(categories)
        if rows:
            found["categories"] = {
                name: {"pictures": len(chosen)}
                | figuring.plain(self._figures(chosen, prompts, replicates=0, overlaps=False))
                for name, chosen in rows.items()
                if len(chosen) > 1
            }
        if left_out := self._left_out():
            found["left_out"] = left_out
        return found

    def _figures(
        self, rows: Any, prompts: np.ndarray | None, *, replicates: int, overlaps: bool
    ) -> dict[str, Figure]:
        found: dict[str, Figure] = {}
        if (drawn := self.drawn.get("inception")) is not None:
            drawn, real = drawn[rows], self.real.get("inception")
            if real is not None and self.paired:
                real = real[rows]
            reference = self.statistics if real is None else real
            assert reference is not None
            whole = isinstance(rows, slice)
            if whole or real is not None:
                found["fid"] = figuring.frechet_figure(
                    drawn, reference, self.protocol, replicates=replicates
                )
            if real is not None:
                found |= figuring.set_figures(drawn, real, self.protocol, overlaps=overlaps)
        if self.judges.clip is not None:
            if "clip" in self.real:
                real = self.real["clip"][rows] if self.paired else self.real["clip"]
                found["cmmd"] = figuring.cmmd_figure(
                    self.drawn["clip"][rows], real, self.judges.clip.name
                )
            if prompts is not None:
                found["clip_score"] = figuring.mean_figure(prompts[rows], self.judges.clip.name)
        return found

    @cached_property
    def scores(self) -> np.ndarray | None:
        """100 times the cosine of each picture and its prompt, which is cut to the context."""
        clip, paired = self.judges.clip, self.paired
        if clip is None or paired is None or not all(item.prompt for item in paired.items):
            return None
        features, scores = self.drawn["clip"], []
        for start in range(0, len(features), 64):
            texts = [item.prompt for item in paired.items[start : start + 64]]
            embedded = clip.embed_texts(texts).float().cpu().numpy()
            scores.append(100 * (embedded * features[start : start + 64]).sum(1))
        return np.concatenate(scores).astype(np.float64)

    def _write_statistics(self, folder: Path) -> None:
        for name, features in (("drawn", self.drawn), ("reference", self.real)):
            if "inception" in features:
                write_statistics(folder / f"{name}.npz", moments_of(features["inception"]))

    def _left_out(self) -> dict[str, str]:
        found: dict[str, str] = {}
        names = "kid, precision, recall, density, coverage"
        if self.judges.inception is None:
            found[f"fid, {names}"] = LACKING["inception"]
        elif not self.real:
            found[names] = "a file of statistics has no pictures to compare with"
        if self.judges.clip is None:
            found["cmmd, clip_score"] = LACKING["clip"]
        elif self.paired is None:
            found["clip_score, categories"] = "the pictures have other names than the benchmark's"
        elif not all(item.prompt for item in self.paired.items):
            found["clip_score"] = "not every picture of the benchmark has a prompt"
        return found


AT_ONCE = 4
"""Pictures drawn at once; how many changes nothing but rounding."""


def _draw(
    options: Options, benchmark: Pictures, folder: Path, part: extraction.Part, device: str
) -> Pictures:
    """Draw what is not there yet; picture `i` has the seed `seed + i`."""
    lacking = [item.key for item in benchmark.items if not item.prompt.strip()]
    if lacking:
        raise DataError(
            f"{len(lacking)} pictures of {benchmark.where} have no prompt, such as "
            f"{lacking[0]!r}: a model cannot draw them; measure --pictures instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{row:06d}.png" for row in range(len(benchmark))]
    own = extraction.rows_of(part, len(paths))
    missing = [row for row in own if not paths[row].exists()]
    if missing:
        model = Sana.load(options.model, device=device)
        draw = drawer(model, steps=options.steps, size=options.size)
        report = progress("pictures drawn")
        for start in range(0, len(missing), AT_ONCE):
            rows = missing[start : start + AT_ONCE]
            prompts = [benchmark.items[row].prompt for row in rows]
            for row, image in zip(
                rows, draw(prompts, [options.seed + row for row in rows]), strict=True
            ):
                write_atomic(paths[row], _saver(image))
            report(start + len(rows), len(missing))
    return Pictures(str(folder), benchmark.items, lambda row: decode(paths[row].read_bytes()))


def _saver(image: Image.Image) -> Callable[[Path], None]:
    return lambda path: image.save(path, format="PNG")

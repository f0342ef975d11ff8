"""What autoencoders lose of the user's own pictures (paper 2.1): several, side by side.

Pictures are center-cropped to squares and resized to one size. Figures have the intervals and
protocols of `evaluate/benchmark/`, and a stopped run resumes in the same way. B batch, N pictures,
H W size.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from opensana.autoencoder.model import Autoencoder
from opensana.datasets.crops import PictureSource
from opensana.device import faithful_dtype, resolve_device
from opensana.errors import ConfigError, RequestError
from opensana.evaluate.benchmark import features as extraction
from opensana.evaluate.benchmark import figures as figuring
from opensana.evaluate.benchmark.judges import LACKING, Judges, open_judges
from opensana.evaluate.benchmark.protocol import PROTOCOLS, ProtocolName, described
from opensana.evaluate.folder import (
    FIGURES,
    REFERENCE,
    Example,
    Shown,
    check_settings,
    spread,
    write_examples,
)
from opensana.evaluate.rows import kept_rows
from opensana.evaluate.sample import Sample, choose
from opensana.files.writing import write_json
from opensana.metrics.library_models import fingerprint
from opensana.metrics.lpips import SMALLEST_SIDE
from opensana.metrics.reconstruction import decibels, pair, ssim, through
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.models.parts import autoencoder_config
from opensana.pictures.sheet import contact_sheet
from opensana.runtime.placing import part_dtype, place
from opensana.workers.progress import progress

SHOWN = 8
WORST, SPREAD = "Worst pictures", "Evenly spaced"
ERROR, SSIM, LPIPS = "squared_error", "ssim", "lpips"


def evaluate_pictures(
    models: Sequence[str],
    pictures: str | Path,
    *,
    to: str | Path | None = None,
    split: str = "train",
    size: int = 512,
    limit: int = 1000,
    lpips: str | Path | None = None,
    inception: str | Path | None = None,
    clip: str | None = None,
    protocol: ProtocolName = "sana",
    replicates: int = 20,
    grid: str | Path | None = None,
    worst: str | Path | None = None,
    batch: int = 4,
    device: str = "auto",
    dtype: str | None = None,
) -> dict[str, Any]:
    """The figures of each autoencoder on at most `limit` pictures, evenly spaced.

    `lpips`, `inception` and `clip` name weights; without them their figures are left out. `to` is
    a folder that keeps everything: the same call resumes. `grid` and `worst` are PNGs to write, of
    originals and reconstructions. A model is built-in, a folder or a hub id.
    """
    if len(set(models)) < len(models):
        raise ConfigError(f"the same autoencoder is named twice in {', '.join(models)}")
    sample = choose(PictureSource.open(pictures, split=split), limit, size=size, batch=batch)
    folders = {name: find_autoencoder(name) for name in models}
    for name, folder in folders.items():
        _check_size(name, autoencoder_config(folder).compression, size)
    judges, chosen = open_judges(inception, clip, lpips, device=device), resolve_device(device)
    settings = {"pictures": str(pictures), "split": split, "size": size, "limit": limit}
    settings |= {"batch": batch, "dtype": dtype, "protocol": protocol, "judges": judges.names()}
    settings["models"] = {name: fingerprint(folder) for name, folder in folders.items()}

    @lru_cache(maxsize=1)  # they are seen one after the other
    def loaded(name: str) -> Autoencoder:
        autoencoder = load_autoencoder(folders[name])
        asked = faithful_dtype(chosen, dtype, autoencoder.dtype)
        return place(autoencoder, chosen, part_dtype(chosen, asked))

    with tempfile.TemporaryDirectory() if to is None else nullcontext(to) as kept:
        folder = Path(kept)
        check_settings(folder, settings)
        seeing = _Seeing(sample, judges, PROTOCOLS[protocol], chosen)
        before = seeing.originals(folder / "originals")
        after = {
            name: seeing.reconstructions(folder / f"model-{number}", name, loaded)
            for number, name in enumerate(models)
        }
        compared = _Compared(before, judges, protocol, size, replicates)
        figures = {
            "pictures": len(sample),
            "source": str(pictures),
            "size": size,
            **({"protocol": described(protocol, size)} if judges.inception else {}),
            "models": {
                name: figuring.plain(compared.figures(rows)) for name, rows in after.items()
            },
            **({"left_out": found} if (found := left_out(judges)) else {}),
        }
        errors = {name: rows[ERROR] for name, rows in after.items()}
        files = {WORST: worst, SPREAD: grid}
        picked = {WORST: hardest(errors), SPREAD: spread(len(sample), SHOWN)}
        wanted = {t: rows for t, rows in picked.items() if to is not None or files[t] is not None}
        examples = _examples(sample, wanted, errors, loaded)
        for title, file in files.items():
            if file is not None:
                save_columns(file, examples[title], size)
        if to is not None:
            write_examples(folder, examples)
            write_json(folder / FIGURES, figures)
    return figures


def _check_size(name: str, unit: int, size: int) -> None:
    if size % unit or size < SMALLEST_SIDE:
        raise RequestError(
            f"{name} takes sizes that are multiples of {unit}, at least {SMALLEST_SIDE}, got {size}"
        )


def hardest(errors: Mapping[str, np.ndarray]) -> list[int]:
    """The pictures of which some autoencoder lost most, by squared error; the worst first."""
    most = np.stack(list(errors.values())).max(0)
    return np.argsort(-most, kind="stable")[:SHOWN].tolist()


@dataclass(frozen=True)
class _Seeing:
    """Pictures, and what autoencoders make of them, to numbers in files."""

    sample: Sample
    judges: Judges
    prepare: Callable[[np.ndarray, int], torch.Tensor]
    device: torch.device

    def originals(self, folder: Path) -> dict[str, np.ndarray]:
        return self._kept(folder, "originals", list(self._extractors), self._features)

    def reconstructions(
        self, folder: Path, name: str, loaded: Callable[[str], Autoencoder]
    ) -> dict[str, np.ndarray]:
        """Errors and features; the autoencoder is loaded if any are not there yet."""

        def compute(levels: np.ndarray) -> dict[str, np.ndarray]:
            first, second = pair(through(loaded(name)), levels)
            found = {ERROR: (first - second).square().flatten(1).mean(1).numpy()}
            found[SSIM] = ssim(first, second).numpy()
            if (judge := self.judges.lpips) is not None:
                with torch.inference_mode():
                    moved = (2 * side.to(self.device) - 1 for side in (first, second))
                    found[LPIPS] = judge.to(self.device)(*moved).cpu().numpy()
            return found | self._features(_levels(second))

        own = [ERROR, SSIM] + [LPIPS] * (self.judges.lpips is not None)
        return self._kept(folder, name, [*own, *self._extractors], compute)

    def _kept(self, folder: Path, what: str, names: list[str], compute: Any) -> Any:
        return kept_rows(
            folder,
            names,
            len(self.sample),
            load=self.sample.read,
            compute=compute,
            batch=self.sample.batch,
            report=progress(f"pictures: {what}"),
        )

    def _features(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        return {name: extract(list(levels)) for name, extract in self._extractors.items()}

    @cached_property
    def _extractors(self) -> dict[str, extraction.Extract]:
        return extraction.extractors(self.judges, self.prepare, self.sample.size, self.device)


@dataclass(frozen=True)
class _Compared:
    """What the figures of every autoencoder share."""

    before: Mapping[str, np.ndarray]
    judges: Judges
    protocol: str
    size: int
    replicates: int

    def figures(self, after: Mapping[str, np.ndarray]) -> dict[str, figuring.Figure]:
        pixels = f"8 bits, {self.size} pixels"
        errors = after[ERROR].astype(np.float64)
        found = {
            "psnr": figuring.mean_figure(np.array([decibels(e) for e in errors]), pixels),
            "psnr_of_mean_error": _of_mean(errors, pixels),
            "ssim": figuring.mean_figure(after[SSIM].astype(np.float64), pixels),
        }
        if self.judges.lpips is not None:
            protocol = f"{self.judges.lpips.network}, {self.size} pixels"
            found["lpips"] = figuring.mean_figure(after[LPIPS].astype(np.float64), protocol)
        if "inception" in after:
            found["rfid"] = figuring.frechet_figure(
                after["inception"],
                self.before["inception"],
                self.protocol,
                replicates=self.replicates,
            )
        if self.judges.clip is not None:
            found["cmmd"] = figuring.cmmd_figure(
                after["clip"], self.before["clip"], self.judges.clip.name
            )
        return found


def _of_mean(errors: np.ndarray, protocol: str) -> figuring.Figure:
    """The PSNR of the mean error; its deviation is the mean's, through the slope there."""
    mean = max(float(errors.mean()), 1e-10)
    deviation = 10 / np.log(10) * figuring.deviation_of_mean(errors) / mean
    return figuring.figure(decibels(mean), deviation, protocol)


def left_out(judges: Judges) -> dict[str, str]:
    """The figures that lack a network, and where to get it."""
    figures = {"lpips": "lpips", "inception": "rfid", "clip": "cmmd"}
    return {figures[name]: LACKING[name] for name in figures if getattr(judges, name) is None}


def _examples(
    sample: Sample,
    groups: Mapping[str, Sequence[int]],
    errors: Mapping[str, np.ndarray],
    loaded: Callable[[str], Autoencoder],
) -> dict[str, list[Example]]:
    """Originals and reconstructions with their PSNR."""
    originals = {row: sample.read([row]) for rows in groups.values() for row in rows}
    columns: dict[int, dict[str, Shown]] = {
        row: {REFERENCE: Shown(Image.fromarray(levels[0]), "original")}
        for row, levels in originals.items()
    }
    for name, found in errors.items():
        for row, levels in originals.items():
            made = _levels(pair(through(loaded(name)), levels)[1])
            caption = f"{decibels(float(found[row])):.2f} dB"
            columns[row][name] = Shown(Image.fromarray(made[0]), caption)
    return {
        title: [Example(sample.name(row), "", columns[row]) for row in rows]
        for title, rows in groups.items()
    }


def _levels(pixels: torch.Tensor) -> np.ndarray:
    """Pixels [B, 3, H, W] in 0..1, as 8 bits hold them, to bytes [B, H, W, 3]."""
    return pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def save_columns(path: str | Path, examples: Sequence[Example], size: int) -> None:
    """Save a PNG with one row per picture: the original, then each model's reconstruction."""
    shown = [
        (column.picture, column.caption if name == REFERENCE else f"{name}, {column.caption}")
        for example in examples
        for name, column in example.columns.items()
    ]
    sheet = contact_sheet(*zip(*shown, strict=True), columns=len(examples[0].columns), side=size)
    sheet.save(path, format="PNG")

"""`opensana reconstruct`: what an autoencoder loses of one's own pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from opensana.cli.command import Command, aligned, emit, emit_json, table
from opensana.cli.output import check_file
from opensana.models.options import Device


@dataclass(frozen=True)
class Reconstruct(Command):
    """Measure how well an autoencoder gives your own pictures back."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A built-in model, a model or autoencoder folder, or a hub id."""
    pictures: Annotated[Positional[str], arg(metavar="PICTURES")]
    """A folder of pictures."""
    against: Annotated[str | None, arg(metavar="MODEL")] = None
    """Another one to compare with, such as the export of a fine-tuning."""
    split: Literal["train", "held_out"] = "train"
    """Which part, of a prepared folder that has two."""
    size: int = 512
    """Side in pixels; pictures are cut to centred squares and resized to it."""
    limit: int = 1000
    """How many pictures at most, evenly spaced."""
    lpips: Annotated[Path | None, arg(metavar="PATH")] = None
    """Weights of LPIPS, made by `opensana convert --preset lpips_vgg16`; adds lpips_vgg."""
    clip: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """A CLIP model; adds frechet_clip, the Fréchet distance of its features."""
    grid: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write a PNG of originals and reconstructions side by side here."""
    batch: int = 4
    """Pictures at once; fewer need less memory."""
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format; left out, what suits device and weights."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        if self.grid is not None:
            check_file(self.grid)
        from opensana.evaluate import evaluate_pictures

        models = [self.model] if self.against is None else [self.model, self.against]
        figures = evaluate_pictures(
            models,
            self.pictures,
            split=self.split,
            size=self.size,
            limit=self.limit,
            lpips=self.lpips,
            clip=self.clip,
            grid=self.grid,
            batch=self.batch,
            device=self.device,
            dtype=self.dtype,
        )
        if self.json:
            emit_json(figures)
        else:
            emit("\n".join(_lines(figures)))


def _lines(figures: dict[str, Any]) -> list[str]:
    models = figures.pop("models")
    names = next(iter(models.values()))
    rows = [["", *models], *([name, *(m[name] for m in models.values())] for name in names)]
    return [*table(figures), "", *aligned(rows)]

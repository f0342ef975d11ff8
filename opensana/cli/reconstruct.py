"""`opensana reconstruct`: what autoencoders lose of one's own pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from opensana.cli.command import Command, aligned, emit, emit_json, table, with_interval
from opensana.cli.output import check_file
from opensana.errors import RequestError
from opensana.models.options import Device


@dataclass(frozen=True)
class Reconstruct(Command):
    """Measure how well autoencoders give your own pictures back."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A built-in model, a model or autoencoder folder, or a hub id."""
    pictures: Annotated[Positional[str], arg(metavar="PICTURES")]
    """A folder of pictures."""
    against: Annotated[tuple[str, ...], arg(metavar="MODEL")] = ()
    """Others to compare with, such as the exports of a fine-tuning."""
    split: Literal["train", "held_out"] = "train"
    """Which part, of a prepared folder that has two."""
    size: int = 512
    """Side in pixels; pictures are cut to centred squares and resized to it."""
    limit: int = 1000
    """How many pictures at most, evenly spaced."""
    to: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Keep numbers, figures and examples here, for `opensana report`; the same command resumes."""
    lpips: Annotated[Path | None, arg(metavar="PATH")] = None
    """Weights of LPIPS, made by `opensana convert --preset lpips_alexnet` or lpips_vgg16."""
    inception: Annotated[Path | None, arg(metavar="PATH")] = None
    """Inception's weights, made by `opensana convert --preset inception_fid`; for rFID."""
    clip: Annotated[str | None, arg(metavar="MODEL")] = None
    """A CLIP by folder or hub id; for CMMD."""
    protocol: Literal["sana", "clean"] = "sana"
    """How pictures are resized for Inception: as Sana's own evaluation does, or as clean-fid."""
    bootstrap: int = 20
    """Resamplings for the interval of rFID; 0 for none."""
    grid: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write a PNG of originals and reconstructions side by side here."""
    worst: Annotated[Path | None, arg(metavar="FILE")] = None
    """The same of the pictures of which most is lost."""
    batch: int = 4
    """Pictures at once; fewer need less memory."""
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number format; left out, what suits device and weights."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        for file in (self.grid, self.worst):
            if file is not None:
                check_file(file)
        if self.bootstrap < 0:
            raise RequestError(f"bootstrap must be 0 or more, got {self.bootstrap}")
        from opensana.evaluate import evaluate_pictures

        figures = evaluate_pictures(
            [self.model, *self.against],
            self.pictures,
            to=self.to,
            split=self.split,
            size=self.size,
            limit=self.limit,
            lpips=self.lpips,
            inception=self.inception,
            clip=self.clip,
            protocol=self.protocol,
            replicates=self.bootstrap,
            grid=self.grid,
            worst=self.worst,
            batch=self.batch,
            device=self.device,
            dtype=self.dtype,
        )
        if self.json:
            emit_json(figures)
        else:
            emit("\n".join(_lines(figures)))


def _lines(figures: dict[str, Any]) -> list[str]:
    """Figures below each other, autoencoders side by side."""
    models = figures.pop("models")
    rows = [["", *models, "protocol"]]
    for name, first in next(iter(models.values())).items():
        cells = [with_interval(model[name]) for model in models.values()]
        rows.append([name, *cells, first["protocol"]])
    return [*table(figures), "", *aligned(rows)]

"""`opensana preview`: fit the map that shows a picture while it is drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit, emit_json, say
from opensana.models.options import Device


@dataclass(frozen=True)
class Preview(Command):
    """Fit an autoencoder's previews, by which a server shows pictures while they are drawn."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """A model or autoencoder folder, a built-in model, or a hub id."""
    pictures: Annotated[Positional[str], arg(metavar="PICTURES")]
    """A folder of pictures like those that will be drawn; a thousand are plenty."""
    to: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where to write preview.safetensors; left out, beside the autoencoder's weights."""
    split: Literal["train", "held_out"] = "train"
    """Which part, of a prepared folder that has two."""
    size: int = 512
    """Side in pixels; pictures are cut to centred squares and resized to it."""
    limit: int = 1000
    """How many pictures at most, evenly spaced; every tenth only measures."""
    batch: int = 4
    """Pictures at once; fewer need less memory."""
    device: Device = "auto"
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from opensana.evaluate.previews import fit_preview
        from opensana.models.find import find_autoencoder

        folder = self.to or find_autoencoder(self.model)
        found = fit_preview(
            self.model, self.pictures, split=self.split, size=self.size, limit=self.limit,
            batch=self.batch, device=self.device,
        )  # fmt: skip
        file = found.preview.write(folder)
        say(
            f"fitted to {found.fitted} pictures; {found.decibels:.1f} dB from {found.measured} "
            "others of its size"
        )
        if self.json:
            figures = {"fitted": found.fitted, "measured": found.measured, "psnr": found.decibels}
            emit_json({"file": str(file), **figures})
        else:
            emit(str(file))

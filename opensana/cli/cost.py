"""`opensana cost`: what a picture costs with any model, from shapes alone."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from opensana.cli.command import Command, aligned, emit, emit_json
from opensana.errors import RequestError


@dataclass(frozen=True)
class Cost(Command):
    """Count operations, bytes and parameters of a picture; no weights are needed."""

    models: Annotated[str, arg(metavar="NAMES")] = "all"
    """Names between commas: all, ours, peers, flux-dev, sana-1.6b and so on, or a model or folder
    of ours."""
    sizes: Annotated[str, arg(metavar="SIZES")] = "512,1024,2048,4096"
    """Sides of the square pictures in pixels, between commas."""
    steps: int | None = None
    """Solver steps; left out, those with which each model was published."""
    device: Annotated[str | None, arg(metavar="NAME")] = None
    """Add the least seconds (roofline) on a device: A100, H100 and so on by their data sheets, or
    `this` for this machine, measured now."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """The device's number format; left out, bfloat16, or what suits this machine."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise RequestError(f"steps must be 1 or more, got {self.steps}")
        if self.dtype is not None and self.device is None:
            raise RequestError("--dtype belongs to a device; add --device A100, or another one")
        from opensana.evaluate.cost.catalogue import check_sizes, painters
        from opensana.evaluate.cost.report import figures, tables
        from opensana.evaluate.cost.roofline import limits

        sizes, chosen = check_sizes(self.sizes), painters(self.models)
        device = None if self.device is None else limits(self.device, self.dtype)
        found = figures(chosen, sizes, device=device, steps=self.steps)
        if self.json:
            emit_json(found)
            return
        for title, rows in tables(found):
            emit("\n".join([title, *aligned(rows), ""]))
        emit("Text encoders are left out. One MAC is two operations.")

"""`opensana info`: what a model is made of, read from its configs and file headers alone."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit, emit_json, table
from opensana.models.options import Model, Revision, Variant


@dataclass(frozen=True)
class Info(Command):
    """Say what a model is: parts, parameters, number formats, licence, memory needed."""

    model: Positional[Model]
    revision: Revision = None
    variant: Variant = None
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """Where it would run, for the memory needed: auto, cpu, cuda, cuda:1 or mps."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from opensana.models.describe import describe

        description = describe(
            self.model, revision=self.revision, variant=self.variant, device=self.device
        )
        if self.json:
            emit_json(description)
        else:
            emit("\n".join(table(description)))

"""`opensana info`: what a model is made of, read from its configs and file headers alone."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, aligned, emit, emit_json, table
from opensana.device import parse_bytes
from opensana.models.options import Model, Revision, Variant


@dataclass(frozen=True)
class Info(Command):
    """Say what a model is: parts, parameters, number formats, licence, memory needed."""

    model: Positional[Model]
    revision: Revision = None
    variant: Variant = None
    device: Annotated[str, arg(metavar="DEVICE")] = "auto"
    """Where it would run, for the memory needed: auto, cpu, cuda, cuda:1 or mps."""
    device_memory: Annotated[str | None, arg(metavar="SIZE")] = None
    """Say which schemes of 8 and 4 bits fit there, such as 8GiB, part by part."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from opensana.models.describe import describe

        room = None if self.device_memory is None else parse_bytes(self.device_memory)
        description = describe(
            self.model, revision=self.revision, variant=self.variant, device=self.device, room=room
        )
        if self.json:
            emit_json(description)
            return
        schemes = description.pop("schemes", [])
        emit("\n".join(table(description)))
        if schemes:
            names = [name.replace("_bytes", ", GiB") for name in schemes[0]]
            rows = [[_gib(value) for value in row.values()] for row in schemes]
            emit("\n" + "\n".join(aligned([names, *rows])))


def _gib(value: object) -> object:
    return f"{value / 2**30:.2f}" if isinstance(value, int) else value

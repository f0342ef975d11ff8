"""`opensana data`: what a picture set holds, and the same set in another form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from opensana.cli.command import Command, emit, emit_json, say, table

if TYPE_CHECKING:
    from opensana.data.convert import Join
    from opensana.data.record import Reject

SHOWN = 20
DATA_COMMANDS = ("data", "data inspect", "data convert")


@dataclass(frozen=True)
class Inspect(Command):
    """Say what a data set holds: pictures, sizes, captions, and what was refused and why."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """A folder, a .tar or .parquet file, a metadata table, or hf://datasets/OWNER/NAME."""
    split: Annotated[str, arg(metavar="NAME")] = "train"
    """Which split of a hub data set."""
    full: bool = False
    """Decode every picture instead of reading its header."""
    rejects: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write what was refused here, one JSON object a line."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        from opensana.data.report import inspect
        from opensana.data.sources import open_source

        source = open_source(self.path, split=self.split)
        figures, rejects = inspect(source, full=self.full)
        _keep(self.rejects, rejects)
        if self.json:
            found = {"rejects": rejects, "notes": source.notes}
            emit_json(figures | {name: [asdict(r) for r in rs] for name, rs in found.items()})
            return
        emit("\n".join(table({name: value for name, value in figures.items() if value != {}})))
        _list("refused", rejects)
        _list("remarks", source.notes)


@dataclass(frozen=True)
class Convert(Command):
    """Write a data set in another form: pictures byte for byte, captions unchanged."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """A folder, a .tar or .parquet file, a metadata table, or hf://datasets/OWNER/NAME."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The folder to write; it appears when all is done."""
    format: Literal["folder", "jsonl", "webdataset", "parquet", "official", "official-tar"]
    """The form to write."""
    split: Annotated[str, arg(metavar="NAME")] = "train"
    """Which split of a hub data set."""
    labels: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Captions, scores and facts that `opensana label` made, to be written with the pictures."""
    shard_size: int = 1000
    """Samples in a shard of webdataset, parquet and official-tar."""
    max_bad: Annotated[str, arg(metavar="SHARE")] = "1%"
    """Fail, and write nothing, if more of the samples cannot be used."""
    rejects: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write what was refused here, one JSON object a line."""

    def run(self) -> None:
        from opensana.data.convert import convert
        from opensana.data.rejects import share_of
        from opensana.data.sources import open_source

        max_bad = share_of(self.max_bad)
        source = open_source(self.path, split=self.split)
        _keep(self.rejects, source.rejects)
        done = convert(
            source,
            self.out,
            self.format,
            join=self.join(),
            shard_size=self.shard_size,
            max_bad=max_bad,
        )
        _keep(self.rejects, done.rejects)
        say(f"{done.samples:,} samples written, {len(done.rejects):,} refused")
        emit(str(self.out))

    def join(self) -> "Join | None":
        from opensana.label.labels import Labels

        return None if self.labels is None else Labels.open(self.labels).join


def data(
    command: Annotated[
        Annotated[Inspect, subcommand("inspect", prefix_name=False)]
        | Annotated[Convert, subcommand("convert", prefix_name=False)],
        arg(name=""),
    ],
) -> Command:
    """Look at picture sets, and bring them into another form."""
    return command


def _keep(path: Path | None, rejects: "Sequence[Reject]") -> None:
    from opensana.data.rejects import write_rejects

    if path is not None:
        write_rejects(path, rejects)


def _list(what: str, entries: "Sequence[Reject]") -> None:
    if entries:
        emit(f"\n{what}")
    for entry in entries[:SHOWN]:
        emit(f"  {entry.path!r}: {entry.reason}")
    if len(entries) > SHOWN:
        emit(f"  ... and {len(entries) - SHOWN:,} more; --json has them all")

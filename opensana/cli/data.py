"""`opensana data`: what a picture set holds, and the same set in another form."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from opensana.cli.command import Command, emit, emit_json, say, table
from opensana.errors import RequestError

if TYPE_CHECKING:
    from opensana.datasets.filters import Filter
    from opensana.datasets.record import Reject
    from opensana.datasets.sources.indexed import Indexed
    from opensana.label.labels import Labels

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
        from opensana.datasets.report import inspect

        source = open_and_tell(self.path, split=self.split)
        figures, rejects = inspect(source, full=self.full)
        _keep(self.rejects, rejects)
        if self.json:
            found = {"rejects": rejects, "notes": source.warnings, "not_read": source.not_read}
            emit_json(figures | {name: [asdict(r) for r in rs] for name, rs in found.items()})
            return
        emit(
            "\n".join(
                table({name: value for name, value in figures.items() if value not in ({}, None)})
            )
        )
        _list("refused", rejects)
        _list("remarks", source.warnings)


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
    min_side: Annotated[int, arg(metavar="PIXELS")] = 0
    """Leave out pictures whose shorter side has fewer pixels."""
    max_aspect: Annotated[float, arg(metavar="TIMES")] = inf
    """Leave out pictures whose sides differ more."""
    min_sharpness: float | None = None
    """Leave out pictures that are less sharp than this; needs --labels with facts."""
    unique: bool = False
    """Keep the first of each group of near-duplicates; needs --labels with facts."""
    shard_size: int = 1000
    """Samples in a shard of webdataset, parquet and official-tar."""
    max_bad: Annotated[str, arg(metavar="SHARE")] = "1%"
    """Fail, and write nothing, if more of the samples cannot be used."""
    rejects: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write what was refused here, one JSON object a line."""

    def run(self) -> None:
        from opensana.datasets.rejects import share_of
        from opensana.datasets.rewrite import convert

        max_bad, labels = share_of(self.max_bad), open_labels(self.labels)
        source = open_and_tell(self.path, split=self.split)
        tell_unlabelled(source, labels)
        _keep(self.rejects, source.rejects)
        done = convert(
            source,
            self.out,
            self.format,
            join=None if labels is None else labels.join,
            wanted=self.wanted(labels),
            shard_size=self.shard_size,
            max_bad=max_bad,
        )
        _keep(self.rejects, done.rejects)
        unwanted = f", {len(done.filtered):,} filtered out" if done.filtered else ""
        say(f"{done.samples:,} samples written, {len(done.rejects):,} refused{unwanted}")
        emit(str(self.out))

    def wanted(self, labels: "Labels | None") -> "Filter":
        from opensana.datasets.filters import Filter

        if self.unique and (labels is None or not labels.measured):
            raise RequestError("--unique needs --labels LABELS made by: opensana label ... --facts")
        repeats = labels.repeats() if self.unique and labels is not None else frozenset[str]()
        return Filter(self.min_side, self.max_aspect, self.min_sharpness, repeats)


def data(
    command: Annotated[
        Annotated[Inspect, subcommand("inspect", prefix_name=False)]
        | Annotated[Convert, subcommand("convert", prefix_name=False)],
        arg(name=""),
    ],
) -> Command:
    """Look at picture sets, and bring them into another form."""
    return command


def open_and_tell(path: str, *, split: str = "train") -> "Indexed":
    """A data set; what nobody will read of it is said."""
    from opensana.datasets.report import not_read
    from opensana.datasets.sources import open_source

    source = open_source(path, split=split)
    for line in not_read(source):
        say(line)
    return source


def open_labels(folder: Path | None) -> "Labels | None":
    from opensana.label.labels import Labels

    return None if folder is None else Labels.open(folder)


def tell_unlabelled(source: "Indexed", labels: "Labels | None") -> None:
    """Say of how many pictures the labels know nothing."""
    missing = labels.missing(record.key for record in source.records) if labels else []
    if missing:
        say(f"no label of {len(missing):,} of {len(source):,} pictures, such as {missing[0]!r}")


def _keep(path: Path | None, rejects: "Sequence[Reject]") -> None:
    from opensana.datasets.rejects import write_rejects

    if path is not None:
        write_rejects(path, rejects)


def _list(what: str, entries: "Sequence[Reject]") -> None:
    if entries:
        emit(f"\n{what}")
    for entry in entries[:SHOWN]:
        emit(f"  {entry.path!r}: {entry.reason}")
    if len(entries) > SHOWN:
        emit(f"  ... and {len(entries) - SHOWN:,} more; --json has them all")

"""Write a data set in another form; pictures stay byte for byte, captions as they are."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from opensana.datasets.filters import Filter
from opensana.datasets.record import Record, Reject
from opensana.datasets.rejects import MAX_BAD, check_bad
from opensana.datasets.sources.indexed import Indexed
from opensana.datasets.writers import WRITERS
from opensana.errors import ConfigError, DataError, near
from opensana.files.writing import atomic_folder

SHARD_SIZE = 1000

Join = Callable[[Record], Record]
"""Adds labels to a sample's record, such as `Labels.join`."""


@dataclass(frozen=True)
class Converted:
    """The number of samples written, the rejects, and what the filter left out."""

    samples: int
    rejects: tuple[Reject, ...]
    filtered: tuple[Reject, ...] = ()


def convert(
    source: Indexed,
    to: str | Path,
    form: str,
    *,
    join: Join | None = None,
    wanted: Filter | None = None,
    shard_size: int = SHARD_SIZE,
    max_bad: float = MAX_BAD,
) -> Converted:
    """Write the samples of a source as `form` to a new folder, atomically.

    DataError if more than the share `max_bad` of the samples cannot be used, or if the filter
    `wanted` leaves none.
    """
    to = Path(to)
    if form not in WRITERS:
        raise ConfigError(f"no form {form!r}{near(form, WRITERS)}; there are {', '.join(WRITERS)}")
    if shard_size < 1:
        raise ConfigError(f"a shard has at least one sample, got {shard_size}")
    if to.exists():
        raise DataError(f"{to} exists already; choose a new folder")
    if Path(source.where).resolve() in to.resolve().parents:
        raise DataError(
            f"{to} lies inside {source.where}, which would then hold both; put it beside"
        )
    rejects, filtered, written = list(source.rejects), list[Reject](), 0
    check_bad(source.where, rejects, len(source), max_bad=max_bad)
    with atomic_folder(to) as folder:
        with closing(WRITERS[form](folder, shard_size)) as writer:
            for index in tqdm(range(len(source)), unit="picture", disable=None):
                record = source.record(index)
                record = join(record) if join else record
                if why := wanted and wanted.why_not(record):
                    filtered.append(Reject(source.paths[index], why))
                    continue
                try:
                    picture = source.picture(index)
                except DataError as error:
                    rejects.append(Reject(source.paths[index], str(error)))
                else:
                    writer.add(record, picture)
                    written += 1
        check_bad(source.where, rejects, written + len(filtered), max_bad=max_bad)
        if not written:
            raise DataError(
                f"no sample of {source.where} passes the filters: {filtered[0].path!r}"
                f" {filtered[0].reason}; loosen them"
            )
    return Converted(written, tuple(rejects), tuple(filtered))

"""The writers by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from opensana.datasets.record import Record
from opensana.datasets.writers.folder import FolderWriter, JsonLinesWriter
from opensana.datasets.writers.official import OfficialFolderWriter, OfficialShardWriter
from opensana.datasets.writers.parquet import ParquetWriter
from opensana.datasets.writers.tar import WebDatasetWriter


class Writer(Protocol):
    """Takes samples one by one; the output is complete after `close`."""

    def add(self, record: Record, picture: bytes) -> None: ...

    def close(self) -> None: ...


WRITERS: dict[str, Callable[[Path, int], Writer]] = {
    "folder": lambda folder, _: FolderWriter(folder),
    "jsonl": lambda folder, _: JsonLinesWriter(folder),
    "webdataset": WebDatasetWriter,
    "parquet": ParquetWriter,
    "official": lambda folder, _: OfficialFolderWriter(folder),
    "official-tar": OfficialShardWriter,
}

"""WebDataset shards."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensana.datasets.record import Record
from opensana.datasets.writers.names import Names, encoded, row_with_key, suffix_of


class Shards:
    """Tar archives 00000.tar, ... of `size` samples each, reproducible byte for byte."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.counts = folder, size, list[int]()
        self.archive: tarfile.TarFile | None = None

    def add(self, name: str, parts: Mapping[str, bytes]) -> None:
        """Add a sample: its parts by suffix."""
        if self.archive is None or self.counts[-1] == self.size:
            self.close()
            path = self.path(len(self.counts))
            self.archive = tarfile.open(path, "w")  # noqa: SIM115 (close does it)
            self.counts.append(0)
        for suffix, content in parts.items():
            info = tarfile.TarInfo(name + suffix)
            info.size = len(content)
            self.archive.addfile(info, io.BytesIO(content))
        self.counts[-1] += 1

    def path(self, shard: int) -> Path:
        return self.folder / f"{shard:05}.tar"

    def close(self) -> None:
        if self.archive is not None:
            self.archive.close()


class WebDatasetWriter:
    """KEY.png, KEY.txt with the first caption, KEY.json with everything."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.shards, self.names = Shards(folder, shard_size), Names(dots=False)

    def add(self, record: Record, picture: bytes) -> None:
        name = self.names.take(record.key)
        row: dict[str, Any] = row_with_key(record, name) | {
            "width": record.width,
            "height": record.height,
        }
        text = {".txt": row["text"].encode("utf-8")} if record.captions else {}
        self.shards.add(name, {suffix_of(picture): picture, **text, ".json": encoded(row)})

    def close(self) -> None:
        self.shards.close()

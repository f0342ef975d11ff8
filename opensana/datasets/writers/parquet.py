"""Parquet files with an image column, which `datasets` reads without options."""

import json
from pathlib import Path
from typing import Any

from opensana.datasets.record import Record
from opensana.datasets.sources.fields import row_of
from opensana.datasets.sources.table import datasets

GROUP_BYTES = 64 << 20


class ParquetWriter:
    """Row groups of at most 64 MiB, so that a reader needs little memory."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.folder, self.size = folder, shard_size
        self.written = self.waiting = 0
        self.schema: Any = _features().arrow_schema
        self.rows: list[dict[str, Any]] = []
        self.file: Any = None

    def add(self, record: Record, picture: bytes) -> None:
        if self.written % self.size == 0:
            from pyarrow import parquet

            self.close()
            path = self.folder / f"{self.written // self.size:05}.parquet"
            self.file = parquet.ParquetWriter(path, self.schema, compression="none")
        row = row_of(record)
        self.rows.append(
            {
                "key": record.key,
                "image": {"bytes": picture, "path": None},
                "width": record.width,
                "height": record.height,
                "text": row.get("text"),
                # Settings as JSON: no schema knows their shape.
                "captions": [
                    {**vars(caption), "settings": json.dumps(dict(caption.settings))}
                    for caption in record.captions
                ],
                "facts": json.dumps(row.get("facts", {})),
            }
        )
        self.written += 1
        self.waiting += len(picture)
        if self.waiting >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        if self.file is not None:
            self.file.close()

    def _flush(self) -> None:
        import pyarrow

        if self.rows:
            self.file.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.waiting = [], 0


def _features() -> Any:
    library = datasets()
    text, size = library.Value("string"), library.Value("int32")
    names = ("text", "captioner", "version", "prompt", "settings", "scorer")
    caption = dict.fromkeys(names, text) | {"score": library.Value("float64")}
    return library.Features(
        {
            "key": text,
            "image": library.Image(),
            "width": size,
            "height": size,
            "text": text,
            "captions": library.List(caption),
            "facts": text,
        }
    )

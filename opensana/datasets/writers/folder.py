"""Pictures as files: with a text file beside each, or with one table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensana.datasets.record import Caption, Record
from opensana.datasets.writers.names import Names, encoded, row_with_key, suffix_of, write_file

TEXTS = {"text", "captions"}


class FolderWriter:
    """KEY.png, KEY.txt with the first caption, KEY.json where there is more to say."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, Names()

    def add(self, record: Record, picture: bytes) -> None:
        name = self.names.take(record.key)
        write_file(self.folder, name + suffix_of(picture), picture)
        row = row_with_key(record, name)
        if record.captions:
            write_file(self.folder, f"{name}.txt", row["text"].encode("utf-8"))
        if record.captions[1:] or record.captions[:1] != _only_text(row) or row.keys() - TEXTS:
            write_file(self.folder, f"{name}.json", encoded(row))

    def close(self) -> None:
        pass


class JsonLinesWriter:
    """KEY.png and one metadata.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, Names()
        self.table = (folder / "metadata.jsonl").open("wb")

    def add(self, record: Record, picture: bytes) -> None:
        name = self.names.take(record.key)
        file_name = name + suffix_of(picture)
        write_file(self.folder, file_name, picture)
        self.table.write(encoded({"file_name": file_name, **row_with_key(record, name)}) + b"\n")

    def close(self) -> None:
        self.table.close()


def _only_text(row: Mapping[str, Any]) -> tuple[Caption, ...]:
    """The captions that a text file alone would give back."""
    return (Caption(row["text"]),) if "text" in row else ()

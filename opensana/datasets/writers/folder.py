"""A folder of pictures, with a text file beside each or one table."""

from pathlib import Path

from opensana.datasets.record import Caption, Record
from opensana.datasets.writers.names import Names, encoded, row_with_key, suffix_of, write_file

TEXTS = {"text", "captions"}


class FolderWriter:
    """KEY.png, KEY.txt with the first caption, KEY.json if there is more."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, Names()

    def add(self, record: Record, picture: bytes) -> None:
        name = self.names.take(record.key)
        write_file(self.folder, name + suffix_of(picture), picture)
        row = row_with_key(record, name)
        in_text_file: tuple[Caption, ...] = ()
        if record.captions:
            write_file(self.folder, f"{name}.txt", row["text"].encode("utf-8"))
            in_text_file = (Caption(row["text"]),)
        if record.captions != in_text_file or row.keys() - TEXTS:
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

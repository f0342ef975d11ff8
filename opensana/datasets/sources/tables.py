"""metadata.jsonl and metadata.csv: rows that name their pictures."""

import csv
import posixpath
from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO

from opensana.datasets.sources.fields import (
    MOST_JSON_BYTES,
    MOST_TEXT_BYTES,
    Row,
    parsed_object,
    tidy,
)
from opensana.datasets.sources.files import Files, Refuse
from opensana.errors import DataError
from opensana.files.encodings import text_lines

TABLES = ("metadata.jsonl", "metadata.csv")


class BadRow(DataError):
    """A damaged row, and what could be read of it, such as the picture that it names."""

    def __init__(self, reason: str, row: Row) -> None:
        super().__init__(reason)
        self.row = row


class Tables:
    """The rows of all tables of a folder, by picture."""

    def __init__(self, files: Files, refuse: Refuse) -> None:
        self.files, self.refuse = files, refuse
        self.rows: dict[str, list[Row]] = defaultdict(list)
        self._faults: dict[str, str] = {}
        self._cut: list[str] = []
        for table in files.visible:
            if posixpath.basename(table).lower() in TABLES:
                self._read(table)

    def check(self, picture: str) -> None:
        """DataError if a picture's row is damaged, or may be in the unread part of a table."""
        if picture in self._faults:
            raise DataError(self._faults[picture])
        if picture in self.rows:
            return
        for table in self._cut:
            if picture.startswith(posixpath.join(posixpath.dirname(table), "")):
                raise DataError(f"has no row in the part of {table!r} that can be read")

    def _read(self, table: str) -> None:
        try:
            with self.files.open(table) as file:
                for number, row in table_rows(file, table):
                    self._take(table, f"{table} line {number}", row)
        except (OSError, DataError, csv.Error) as error:
            self._cut.append(table)
            self.refuse(table, f"cannot be read to its end ({error})")

    def _take(self, table: str, where: str, row: "Row | BadRow") -> None:
        bad = isinstance(row, BadRow)
        try:
            picture = self._picture(table, row.row if bad else row)
        except DataError as error:
            self.refuse(where, str(row if bad else error))
            return
        if bad:
            self._faults[picture] = f"has a row that cannot be read: {where!r} {row}"
        else:
            self.rows[picture].append(row)

    def _picture(self, table: str, row: Row) -> str:
        """The file that a row names; DataError if it is missing."""
        file_name = row.get("file_name")
        if not isinstance(file_name, str) or not file_name:
            raise DataError("names no file in `file_name`")
        name = posixpath.normpath(posixpath.join(posixpath.dirname(table), file_name))
        other = posixpath.normpath(name.replace("\\", "/"))  # written on Windows
        found = self.files.find(name) or self.files.find(other)
        if found is None:
            out = name.startswith(("/", ".."))
            raise DataError(f"{tidy(file_name)!r} {'leads out of here' if out else 'is not there'}")
        return found


def table_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, Row | BadRow]]:
    """The rows of JSON lines (*.jsonl) or CSV; DataError or csv.Error if reading must stop."""
    return _json_rows(file) if name.lower().endswith(".jsonl") else _csv_rows(file)


def _json_rows(file: BinaryIO) -> Iterator[tuple[int, Row | BadRow]]:
    for number, (line, fault) in enumerate(text_lines(file, most=MOST_JSON_BYTES), start=1):
        if line.strip():
            problems: list[str] = []
            row = parsed_object(line, problems.append)
            why = problems[0] if problems else fault
            yield number, BadRow(why, row) if why else row


def _csv_rows(file: BinaryIO) -> Iterator[tuple[int, Row | BadRow]]:
    faults: list[str] = []

    def lines() -> Iterator[str]:
        for line, fault in text_lines(file, most=MOST_TEXT_BYTES):
            faults.extend([fault] if fault else [])
            yield line

    reader = csv.DictReader(lines(), restkey="")
    for row in reader:
        if isinstance(row.get(""), list) and any(row[""]):
            faults.append("has more fields than the header; quote a text that holds commas")
        yield reader.line_num, BadRow(faults[0], row) if faults else row
        faults.clear()

"""Pictures as files: captions in a table, in a text or JSON file beside each, or none.

    x.png  x.txt                   the whole text is one caption
    x.png  x.json                  the fields of `fields.py`
    metadata.jsonl, metadata.csv   `file_name` (from the table's folder) and the same fields
    the released code's files      see `official.py`

A key is the path below the folder without its suffix; where two pictures share that, the later
ones keep their suffix.
"""

import csv
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from opensana.data.images import LIMITS, Limits
from opensana.data.record import Caption
from opensana.data.sources import official
from opensana.data.sources.fields import (
    MOST_JSON_BYTES,
    MOST_TEXT_BYTES,
    Row,
    captions_beside,
    captions_of,
    facts_of,
    load_object,
    tidy,
)
from opensana.data.sources.files import files_below, open_inside, read_inside
from opensana.data.sources.indexed import Indexed
from opensana.errors import DataError

TABLES = ("metadata.jsonl", "metadata.csv")
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
# Named as refused instead of being passed over: somebody meant them to be pictures.
FOREIGN = frozenset(
    {".apng", ".avif", ".bmp", ".eps", ".fit", ".fits", ".gif", ".heic", ".heif", ".ico", ".jfif"}
    | {".jp2", ".jxl", ".pbm", ".pgm", ".pnm", ".ppm", ".ps", ".psd", ".svg", ".tga", ".tif"}
    | {".tiff"}
)


class FolderSource(Indexed):
    """The pictures below a folder, in the order of their names."""

    def __init__(self, folder: Path, *, limits: Limits = LIMITS) -> None:
        super().__init__(str(folder), limits=limits)
        self.folder = folder
        self._files: list[Path] = []
        self._found = files_below(folder, self.reject)
        self._rows = self._read_tables()
        names = [name for name in self._found if _is_picture(name) or name in self._rows]
        self._stems = {_stem(name) for name in names}
        self._beside, self._official = self._read_json()
        for name in names:
            self._take(name)
        self._report_missing()

    def picture(self, index: int) -> bytes:
        try:
            return read_inside(self._files[index], self.folder, most=self.limits.bytes)
        except DataError as error:
            raise DataError(f"the picture {self.records[index].key!r} {error}") from error

    def _take(self, name: str) -> None:
        path, note = self._found[name], self.note(name)
        try:
            with open_inside(path, self.folder) as file:
                captions, facts = self._captions(name), facts_of(self._row(name), note)
                if self.add(self._key(name), file, name, captions=captions, facts=facts):
                    self._files.append(path)
        except (OSError, DataError) as error:
            self.reject(name, str(error))

    def _key(self, name: str) -> str:
        own = self._row(name).get("key")
        if isinstance(own, str) and own:
            return own
        return name if _stem(name) in self else _stem(name)

    def _row(self, name: str) -> Row:
        return next(iter(self._rows.get(name, ())), self._beside.get(_stem(name), {}))

    def _captions(self, name: str) -> tuple[Caption, ...]:
        note = self.note(name)
        if name in self._rows:
            return tuple(c for row in self._rows[name] for c in captions_of(row, note))
        stem = _stem(name)
        captions = captions_beside(self._text(stem + ".txt"), self._row(name), note)
        if stem not in self._official:
            return captions
        return official.captions_with_suffixes(captions, self._official[stem], note)

    def _text(self, name: str) -> bytes | None:
        return self._content(name, MOST_TEXT_BYTES) if name in self._found else None

    def _content(self, name: str, most: int) -> bytes | None:
        try:
            return read_inside(self._found[name], self.folder, most=most)
        except DataError as error:
            self.note(name)(f"{error}; it was left out")
            return None

    def _read_json(self) -> tuple[dict[str, Row], dict[str, dict[str, Any]]]:
        """The rows beside pictures by stem, and the official files' parts by stem and suffix."""
        beside: dict[str, Row] = {}
        parts: dict[str, dict[str, Any]] = defaultdict(dict)
        for name in self._found:
            where, stem = posixpath.split(_stem(name))
            if not name.endswith(".json") or stem + ".json" == official.FOLDER_INDEX:
                continue
            row = load_object(self._content(name, MOST_JSON_BYTES) or b"{}", self.note(name))
            for key, value in row.items():
                picture = posixpath.join(where, key)
                if isinstance(value, Mapping) and stem.startswith(key) and picture in self._stems:
                    parts[picture][stem[len(key) :]] = value
                    break
            else:
                beside[_stem(name)] = row
        return beside, parts

    def _read_tables(self) -> dict[str, list[Row]]:
        """The rows of all tables, by the name of the picture below the folder."""
        rows: dict[str, list[Row]] = defaultdict(list)
        for table in self._found:
            if posixpath.basename(table) not in TABLES:
                continue
            for number, row in self._lines(table):
                file_name = row.get("file_name")
                if not isinstance(file_name, str) or not file_name:
                    self.reject(f"{table} line {number}", "names no file in `file_name`")
                    continue
                name = posixpath.normpath(posixpath.join(posixpath.dirname(table), file_name))
                if name in self._found:
                    rows[name].append(row)
                elif name.startswith(("/", "..")):
                    self.reject(f"{table} line {number}", f"{tidy(file_name)!r} leads out of here")
                else:
                    self.reject(f"{table} line {number}", f"{tidy(file_name)!r} is not there")
        return rows

    def _lines(self, table: str) -> Iterator[tuple[int, Row]]:
        """The rows of a table with their line numbers; what cannot be read is refused."""
        try:
            with open_inside(self._found[table], self.folder) as file:
                for number, row in table_rows(file, table):
                    if isinstance(row, DataError):
                        self.reject(f"{table} line {number}", str(row))
                    else:
                        yield number, row
        except (OSError, DataError, csv.Error) as error:
            self.reject(table, f"cannot be read to its end ({error})")

    def _report_missing(self) -> None:
        """meta_data.json may name pictures that are not there."""
        if official.FOLDER_INDEX not in self._found:
            return
        content = self._content(official.FOLDER_INDEX, MOST_JSON_BYTES) or b"{}"
        names = load_object(content, self.note(official.FOLDER_INDEX)).get("img_names", [])
        for name in names if isinstance(names, list) else []:
            if isinstance(name, str) and name not in self._stems:
                self.reject(official.FOLDER_INDEX, f"names {tidy(name)!r}, which is not there")


def table_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, Row | DataError]]:
    """The rows of JSON lines (*.jsonl) or CSV with their line numbers, or why one is none."""
    return _json_lines(file) if name.endswith(".jsonl") else _csv_lines(file)


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, Row | DataError]]:
    number = 0
    while line := file.readline(MOST_JSON_BYTES + 1):
        number += 1
        if len(line) > MOST_JSON_BYTES:
            raise DataError(f"line {number} has more than {MOST_JSON_BYTES:,} bytes")
        if line.strip():
            problems: list[str] = []
            row = load_object(line, problems.append)
            yield number, DataError(problems[0]) if problems else row


def _csv_lines(file: BinaryIO) -> Iterator[tuple[int, Row]]:
    text = (line.decode("utf-8", "surrogateescape") for line in _short_lines(file))
    reader = csv.DictReader(text, restkey="")
    for row in reader:
        yield reader.line_num, row


def _short_lines(file: BinaryIO) -> Iterator[bytes]:
    first = True
    while line := file.readline(MOST_TEXT_BYTES):
        yield line.removeprefix(b"\xef\xbb\xbf") if first else line
        first = False


def _is_picture(name: str) -> bool:
    suffix = posixpath.splitext(name)[1].lower()
    return suffix in PICTURES or suffix in FOREIGN


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]

"""Existing captions: a column of a table as a captioner.

The table is JSON lines or CSV. A row names its picture by `key`, or by `file_name` as in a folder's
metadata. A picture without a row or with an empty cell is skipped; that is no failure, and the
number of skipped pictures is reported at the end.
"""

import csv
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from opensana.datasets.sources.beside import one_spelling
from opensana.datasets.sources.fields import Row
from opensana.datasets.sources.tables import BadRow, table_rows
from opensana.errors import ConfigError, DataError, near
from opensana.label.captioner import Answers, CaptionSource, Pictures, single_line

KEYS = ("key", "file_name")


class TableCaptioner:
    """Gives each picture the text of its row."""

    def __init__(self, spec: str) -> None:
        """`spec` is FILE#COLUMN; DataError if the file cannot be read or lacks the column."""
        file, _, column = spec.rpartition("#")
        path = Path(file).expanduser()
        self.texts = read_column(path, column)
        # The digest of the column, not of the file: other columns may change.
        words = hashlib.sha256(repr(sorted(self.texts.items())).encode("utf-8", "replace"))
        self.source = CaptionSource(column, f"sha256:{words.hexdigest()[:16]}", "", {})

    def __call__(self, pictures: Pictures) -> Answers:
        passed: list[str] = []
        for key, _ in pictures:
            if (name := one_spelling(key)) in self.texts:
                yield key, single_line(self.texts[name])
            else:
                passed.append(key)
        if passed:
            print(
                f"{self.source.captioner}: no caption of {len(passed)} pictures, "
                f"such as {passed[0]!r}",
                file=sys.stderr,
            )


def read_column(path: Path, column: str) -> dict[str, str]:
    """Key (in Unicode form NFC) -> text, of the rows that have one."""
    texts: dict[str, str] = {}
    columns: set[str] = set()
    for number, row in _rows(path):
        if isinstance(row, BadRow):
            raise DataError(f"{path}, line {number}: {row}")
        columns |= row.keys()
        texts |= _cell(row, column, f"{path}, line {number}")
    if column not in columns:
        raise ConfigError(f"{path} has no column {column!r}{near(column, columns)}")
    return texts


def _rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    try:
        with path.open("rb") as file:
            yield from table_rows(file, path.name)
    except (OSError, DataError, csv.Error) as error:
        raise ConfigError(f"cannot read the captions in {path}: {error}") from error


def _cell(row: Any, column: str, where: str) -> dict[str, str]:
    """{key: text} of a row; {} without a text."""
    name = next((name for name in KEYS if isinstance(row.get(name), str) and row[name]), None)
    if name is None:
        raise DataError(f"{where} names no picture; expected {' or '.join(KEYS)}")
    text = row.get(column)
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: {column!r} is {text!r:.40}, expected a text")
    key = row[name] if name == "key" else str(PurePosixPath(row[name]).with_suffix(""))
    return {one_spelling(key): text} if text and text.strip() else {}

"""Shared by all writers: safe file names for keys, rows as JSON, files."""

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from opensana.datasets.record import Record
from opensana.datasets.sources.fields import row_of
from opensana.datasets.sources.official import FOLDER_INDEX
from opensana.pictures.decode import SUFFIXES, kind_of

UNSAFE = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]|^\.|^$')
LONGEST_NAME = 60  # characters, of up to four bytes each


class Names:
    """File names for keys: relative, safe on every system, unique."""

    def __init__(self, *, flat: bool = False, dots: bool = True) -> None:
        self.flat, self.dots = flat, dots
        self.taken = {Path(FOLDER_INDEX).stem}

    def take(self, key: str) -> str:
        """The name of the next key, unique even if case is ignored."""
        parts = (UNSAFE.sub("_", part)[:LONGEST_NAME] for part in key.split("/"))
        name = ("_" if self.flat else "/").join(parts)
        name = name if self.dots else name.replace(".", "_")
        number, wanted = 1, name
        while name.lower() in self.taken:
            number += 1
            name = f"{wanted}-{number}"
        self.taken.add(name.lower())
        return name


def row_with_key(record: Record, name: str) -> dict[str, Any]:
    return row_of(record) | key_if_changed(record, name)


def suffix_of(picture: bytes) -> str:
    """.png, .jpg or .webp, by content."""
    return SUFFIXES[kind_of(picture[:64])]


def write_file(folder: Path, name: str, content: bytes) -> None:
    path = folder / PurePosixPath(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def encoded(value: Any) -> bytes:
    r"""JSON in UTF-8; a lone surrogate becomes a \u escape."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def key_if_changed(record: Record, name: str) -> dict[str, str]:
    return {} if name == record.key else {"key": record.key}

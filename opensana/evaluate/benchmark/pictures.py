"""The pictures and prompts of a benchmark, and pictures that were drawn elsewhere.

    MJHQ-30K    meta_data.json {key: {"category": ..., "prompt": ...}}, pictures in
                imgs/CATEGORY/KEY.jpg or CATEGORY/KEY.jpg
    any other   what `open_source` reads: a folder with captions, shards, parquet; the first caption
                is the prompt, and the first folder of the key the category

Pictures are read one by one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opensana.datasets.sources import open_source
from opensana.datasets.sources.files import read_inside
from opensana.errors import DataError
from opensana.evaluate.folder import spread
from opensana.pictures.decode import LIMITS, decode

INDEX = "meta_data.json"
MOST_INDEX_BYTES = 256 << 20
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Read = Callable[[int], np.ndarray]
"""A number to the upright picture uint8 [H, W, 3]; DataError if it cannot be read."""


@dataclass(frozen=True)
class Item:
    """A picture of a benchmark: its key, its prompt ("" for none), its category ("" for none)."""

    key: str
    prompt: str
    category: str


@dataclass(frozen=True)
class Pictures:
    """Numbered pictures, and what is known of each."""

    where: str
    items: list[Item]
    read: Read

    def __len__(self) -> int:
        return len(self.items)

    def chosen(self, limit: int | None) -> "Pictures":
        """At most `limit` of them, evenly spaced."""
        return self.at(spread(len(self), len(self) if limit is None else limit))

    def at(self, rows: Sequence[int]) -> "Pictures":
        """Those of these numbers, in this order."""
        return Pictures(
            self.where, [self.items[row] for row in rows], lambda index: self.read(rows[index])
        )


def open_pictures(path: str | Path) -> Pictures:
    """The pictures of a folder, shard or table; DataError if there are none."""
    folder = Path(path)
    index = _index(folder)
    found = _open_any(path) if index is None else _open_mjhq(folder, index)
    if not len(found):
        raise DataError(f"there are no pictures at {path}; see `opensana data inspect {path}`")
    return found


def matched(pictures: Pictures, benchmark: Pictures) -> Pictures | None:
    """The pictures in the benchmark's order, by key or its last part; None if one is missing."""
    by_key = {item.key: row for row, item in enumerate(pictures.items)}
    by_name = {item.key.rpartition("/")[2]: row for row, item in enumerate(pictures.items)}
    rows = [
        by_key.get(item.key, by_name.get(item.key.rpartition("/")[2])) for item in benchmark.items
    ]
    known = [row for row in rows if row is not None]
    return pictures.at(known) if len(known) == len(rows) == len(set(known)) else None


def _open_any(path: str | Path) -> Pictures:
    source = open_source(path)
    items = []
    for number in range(len(source)):
        record = source.record(number)
        prompt = record.captions[0].text if record.captions else ""
        items.append(Item(record.key, prompt, record.key.partition("/")[0] * ("/" in record.key)))
    return Pictures(str(path), items, lambda row: decode(source.picture(row)))


def _index(folder: Path) -> Mapping[str, Any] | None:
    """MJHQ-30K's index, if that is what the folder has; the official code has another of its name.

    Only keys with a prompt and a category are MJHQ's.
    """
    if not (folder / INDEX).is_file():
        return None
    try:
        value = json.loads(read_inside(folder / INDEX, folder, most=MOST_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / INDEX} is no JSON ({error})") from None
    first = next(iter(value.values()), None) if isinstance(value, Mapping) else None
    return value if isinstance(first, Mapping) and {"prompt", "category"} <= first.keys() else None


def _open_mjhq(folder: Path, index: Mapping[str, Any]) -> Pictures:
    items = []
    for key, row in index.items():
        values = [key, *(row.get(name) for name in ("prompt", "category"))] if row else []
        if len(values) != 3 or not all(isinstance(value, str) for value in values):
            raise DataError(f"{folder / INDEX} has no prompt and category of {key!r:.60}")
        if any(Path(part).name != part or part == ".." for part in (values[0], values[2])):
            raise DataError(f"{folder / INDEX}: {key!r:.60} or its category is a path, not a name")
        items.append(Item(*values))
    root = folder / "imgs" if (folder / "imgs").is_dir() else folder

    def read(row: int) -> np.ndarray:
        item = items[row]
        where = root / item.category
        found = (where / (item.key + suffix) for suffix in SUFFIXES)
        path = next((path for path in found if path.is_file()), where / (item.key + SUFFIXES[0]))
        try:
            return decode(read_inside(path, folder, most=LIMITS.bytes))
        except DataError as error:
            raise DataError(f"the picture {path} {error}") from None

    return Pictures(str(folder), items, read)

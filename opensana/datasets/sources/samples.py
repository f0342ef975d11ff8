"""Group the members of a shard into samples, by their names alone.

    KEY.jpg KEY.txt KEY.json       KEY ends at the last dot, as in a folder: 22.05.png is 22.05
    KEY.seg.png beside KEY.jpg     WebDataset, whose KEY ends at the first dot of the file name

The second rule holds if KEY has other files, KEY.seg has only this one, and a word is between the
dots. Beside a picture KEY.jpg such a file is another part, which is not read; with KEY.txt or
KEY.json and no other picture it is the picture of KEY; of several such pictures none is used.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from opensana.datasets.sources.beside import (
    ROWS,
    TEXTS,
    Neighbours,
    is_hidden,
    is_picture,
    one_spelling,
    stem_of,
    suffix_of,
)

WORD = re.compile(r"[^\W\d][\w.\-]*")


@dataclass(frozen=True)
class Named:
    """A sample by names; `index` is the member with its picture."""

    key: str
    index: int
    beside: tuple[str, ...]


@dataclass
class Grouped:
    """The samples in the order of their pictures, and the other members."""

    samples: list[Named] = field(default_factory=list[Named])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """Why members cannot be used, by member or key."""
    not_read: Counter[str] = field(default_factory=Counter[str])
    """The number of ignored members by kind."""


def group(names: Sequence[str]) -> Grouped:
    """Group the names of a shard's members, which may come in any order."""
    found = Grouped()
    visible = [name for name in names if not is_hidden(name)]
    pictures = [name for name in visible if is_picture(name)]
    stems = {one_spelling(stem_of(name)) for name in pictures}
    neighbours = Neighbours(dict.fromkeys(visible), pictures)

    def is_part(name: str) -> bool:
        key = short_key(name)
        has_files = bool(key) and (one_spelling(key) in stems or bool(neighbours.named(key)))
        return has_files and not neighbours.of(name)

    wanted, used = set(pictures), set(pictures)
    parts = {name for name in pictures if is_part(name)}
    rivals = Counter(one_spelling(short_key(name)) for name in parts)
    for index, name in enumerate(names):
        if name not in wanted:
            continue
        key = short_key(name) if name in parts else stem_of(name)
        if name in parts and one_spelling(key) in stems:
            found.not_read[f"of the kind .{extension_of(name)}"] += 1
            continue
        if name in parts and rivals[one_spelling(key)] > 1:
            found.refused[name] = f"is one of several pictures of {key!r}; which one is not known"
            continue
        beside = neighbours.named(key) if name in parts else neighbours.of(name)
        used.update(beside)
        found.samples.append(Named(key, index, tuple(beside)))
    seen: set[str] = set()
    for name in names:
        if is_hidden(name):
            found.not_read["hidden"] += 1
        elif name in used:
            if name in seen and not is_picture(name):
                found.not_read["with a name that was there before"] += 1
        elif suffix_of(name) in TEXTS | ROWS and one_spelling(short_key(name)) not in stems:
            found.refused[stem_of(name)] = "has no picture"
        else:
            found.not_read[f"of the kind .{extension_of(name)}"] += 1
        seen.add(name)
    return found


def short_key(name: str) -> str:
    """WebDataset's key of KEY.word.png; "" if no word is between the dots."""
    where, base = posixpath.split(stem_of(name))
    key, _, word = base.partition(".")
    return posixpath.join(where, key) if key and WORD.fullmatch(word) else ""


def extension_of(name: str) -> str:
    """What follows the first dot of the file name."""
    return posixpath.basename(name).partition(".")[2]

"""Which members of a shard make a sample, told by their names alone.

    KEY.jpg KEY.txt KEY.json       KEY ends at the last dot, as in a folder: 22.05.png is 22.05
    KEY.seg.png beside KEY.jpg     WebDataset, whose KEY ends at the first dot of the file name

The second holds where KEY has files of its own, KEY.seg has none but this one, and what stands
between the dots is a word. Beside a picture KEY.jpg it is then a further part, which is not read;
with KEY.txt or KEY.json and no other picture it is the picture of KEY, and of several none is.
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
    """A sample by names: its picture is that at `place` of all members."""

    key: str
    place: int
    beside: tuple[str, ...]


@dataclass
class Grouped:
    """The samples in the order of their pictures, and what is none."""

    samples: list[Named] = field(default_factory=list[Named])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """Why members that were meant to be used cannot be, by member or key."""
    not_read: Counter[str] = field(default_factory=Counter[str])
    """How many others there are of each kind."""


def group(names: Sequence[str]) -> Grouped:
    """The samples among the names of a shard's members, in any order."""
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
    for place, name in enumerate(names):
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
        found.samples.append(Named(key, place, tuple(beside)))
    _sort_out(names, used, stems, found)
    return found


def _sort_out(names: Sequence[str], used: set[str], stems: set[str], found: Grouped) -> None:
    """What becomes of the members that belong to no picture."""
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


def short_key(name: str) -> str:
    """WebDataset's key of KEY.word.png, and "" for what has no word between its dots."""
    where, base = posixpath.split(stem_of(name))
    key, _, word = base.partition(".")
    return posixpath.join(where, key) if key and WORD.fullmatch(word) else ""


def extension_of(name: str) -> str:
    """What follows the first dot of the file name."""
    return posixpath.basename(name).partition(".")[2]

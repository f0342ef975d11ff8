"""WebDataset shards: tar archives in which members that follow each other make a sample.

    KEY.jpg  KEY.txt  KEY.json     KEY ends at the first dot of the file name

The text is one caption, the JSON has the fields of `fields.py` (img2dataset's too), and beside a
shard there may be the caption files of `official.py`. Archives are indexed when opened and read in
place; nothing is unpacked.
"""

import io
import posixpath
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from opensana.data.images import LIMITS, Limits
from opensana.data.sources import official
from opensana.data.sources.archive import Member, members
from opensana.data.sources.fields import (
    MOST_JSON_BYTES,
    MOST_TEXT_BYTES,
    Row,
    captions_beside,
    facts_of,
    load_object,
    tidy,
)
from opensana.data.sources.files import open_inside, read_inside
from opensana.data.sources.indexed import Indexed
from opensana.errors import DataError

MOST_SIDECAR_BYTES = 256 << 20
PICTURES = frozenset({"png", "jpg", "jpeg", "webp"})
PARTS = dict.fromkeys(PICTURES, "picture") | {"txt": "txt", "json": "json"}


class TarSource(Indexed):
    """The samples of shards, in the order of the shards' names and of their members."""

    def __init__(self, folder: Path, shards: Sequence[Path], *, limits: Limits = LIMITS) -> None:
        super().__init__(str(folder), limits=limits)
        self.folder, self.shards = folder, list(shards)
        self.places: list[tuple[Path, Member]] = []
        for shard in self.shards:
            self._index(shard)
        self._report_missing()

    def picture(self, index: int) -> bytes:
        shard, member = self.places[index]
        try:
            with shard.open("rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise DataError(f"{shard} cannot be read ({error.strerror or error})") from None
        if len(content) != member.size:
            raise DataError(f"{shard} has lost the end of {member.name!r}")
        return content

    def _index(self, shard: Path) -> None:
        name = shard.relative_to(self.folder).as_posix()
        try:
            file = open_inside(shard, self.folder)
        except DataError as error:
            self.reject(name, str(error))
            return
        with file:
            _Shard(self, shard, name, file).read()

    def _report_missing(self) -> None:
        index = self.folder / official.SHARD_INDEX
        if not index.is_file():
            return
        note = self.note(official.SHARD_INDEX)
        listed = _object(index, self.folder, note).get("shardlist")
        there = {shard.name for shard in self.shards}
        for entry in listed if isinstance(listed, list) else []:
            name = posixpath.basename(str(entry.get("url") if isinstance(entry, dict) else entry))
            if name not in there:
                self.reject(official.SHARD_INDEX, f"names {tidy(name)!r}, which is not there")


class _Shard:
    """One archive while it is being indexed."""

    def __init__(self, source: TarSource, path: Path, name: str, file: BinaryIO) -> None:
        self.source, self.path, self.name, self.file = source, path, name, file
        self.official = self._official_files()
        self.other = Counter[str]()
        self.keys: set[str] = set()

    def read(self) -> None:
        sample: dict[str, Member] = {}
        current = ""
        for member in members(self.path, self._refuse):
            key, extension = _split(member.name)
            part = PARTS.get(extension.lower())
            if part is None:
                self.other[extension] += 1
                continue
            if key != current or part in sample:
                self._take(current, sample)
                current, sample = key, {}
            sample[part] = member
        self._take(current, sample)
        for extension, count in self.other.items():
            self.source.note(self.name)(f"{count} members of the kind .{extension!s:.40} not read")

    def _refuse(self, member: str, reason: str) -> None:
        self.source.reject(f"{self.name}:{member}" if member else self.name, reason)

    def _take(self, key: str, sample: Mapping[str, Member]) -> None:
        if not sample:
            return
        where = f"{self.name}:{key}"
        picture = sample.get("picture")
        if picture is None:
            self.source.reject(where, "has no picture")
            return
        note = self.source.note(where)
        content = self._content(sample.get("json"), MOST_JSON_BYTES, where)
        row = load_object(content, note) if content is not None else {}
        text = self._content(sample.get("txt"), MOST_TEXT_BYTES, where)
        captions = captions_beside(text, row, note)
        if key in self.official:
            captions = official.captions_with_suffixes(captions, self.official[key], note)
        own = row.get("key")
        key = own if isinstance(own, str) and own else key
        taken = self.source.add(
            self._unique(key),
            cast(BinaryIO, io.BufferedReader(_Window(self.file, picture))),
            f"{self.name}:{picture.name}",
            captions=captions,
            facts=facts_of(row, note),
        )
        if taken:
            self.source.places.append((self.path, picture))

    def _unique(self, key: str) -> str:
        """Shards may each count from 0: then the key of a later one begins with its name."""
        again = key in self.keys
        self.keys.add(key)
        return f"{self.path.stem}/{key}" if key in self.source and not again else key

    def _content(self, member: Member | None, most: int, where: str) -> bytes | None:
        if member is None:
            return None
        if member.size > most:
            self.source.note(where)(f"{member.name!r} was left out: more than {most:,} bytes")
            return None
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def _official_files(self) -> dict[str, dict[str, Any]]:
        """What the caption files beside the shard say, by key and by suffix."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        stem = self.path.stem
        for path in sorted(self.path.parent.glob("*.json")):
            suffix = path.stem.removeprefix(stem)
            if not path.stem.startswith(stem) or (suffix and not suffix.startswith("_")):
                continue
            note = self.source.note(path.relative_to(self.source.folder).as_posix())
            for key, value in _object(path, self.source.folder, note).items():
                if isinstance(value, Mapping):
                    found[key][suffix] = value
        return found


class _Window(io.RawIOBase):
    """The bytes of one member as a file of their own."""

    def __init__(self, file: BinaryIO, member: Member) -> None:
        self.file, self.member, self.at = file, member, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.member.size}[whence]
        self.at = max(0, start + offset)
        return self.at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.member.size - self.at))
        self.file.seek(self.member.offset + self.at)
        content = self.file.read(count)
        buffer[: len(content)] = content
        self.at += len(content)
        return len(content)


def _split(name: str) -> tuple[str, str]:
    """KEY and extension: a/b.seg.png is (a/b, seg.png)."""
    where, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(where, stem), extension


def _object(path: Path, root: Path, note: Any) -> Row:
    try:
        return load_object(read_inside(path, root, most=MOST_SIDECAR_BYTES), note)
    except DataError as error:
        note(f"{error}; it was left out")
        return {}

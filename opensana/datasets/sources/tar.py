"""Tar shards: WebDataset's, img2dataset's, and any folder of pictures that somebody packed.

    KEY.jpg  KEY.txt KEY.caption  KEY.json      in any order; see `samples.py` and `beside.py`

The text is one caption, the JSON has the fields of `fields.py` (img2dataset's too), and beside a
shard there may be the caption files of `official.py`. Archives are indexed when opened and read in
place; nothing is unpacked.
"""

import io
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from opensana.datasets.record import Caption
from opensana.datasets.sources import official
from opensana.datasets.sources.archive import Member, members
from opensana.datasets.sources.beside import TEXTS, one_spelling, suffix_of
from opensana.datasets.sources.fields import (
    MOST_JSON_BYTES,
    MOST_TEXT_BYTES,
    Note,
    Row,
    captions_beside,
    facts_of,
    load_object,
    tidy,
)
from opensana.datasets.sources.files import open_inside, read_inside
from opensana.datasets.sources.indexed import Indexed, printable
from opensana.datasets.sources.samples import Named, group
from opensana.errors import DataError
from opensana.files.encodings import decode_text
from opensana.pictures.decode import LIMITS, Limits

MOST_SIDECAR_BYTES = 256 << 20


class TarSource(Indexed):
    """The samples of shards, in the order of the shards' names and of their members."""

    def __init__(self, folder: Path, shards: Sequence[Path], *, limits: Limits = LIMITS) -> None:
        super().__init__(str(folder), limits=limits)
        self.folder, self.shards = folder, list(shards)
        self.places: list[tuple[Path, Member]] = []
        self.files: set[str] = set()
        """The files that were read, below the folder."""
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
        self.files.add(name)
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
        self.files.add(official.SHARD_INDEX)
        try:
            index = _object(index, self.folder, self.note(official.SHARD_INDEX))
        except DataError as error:
            self.reject(official.SHARD_INDEX, str(error))
            return
        listed = index.get("shardlist")
        there = {shard.name for shard in self.shards}
        for entry in listed if isinstance(listed, list) else []:
            name = posixpath.basename(str(entry.get("url") if isinstance(entry, dict) else entry))
            if name not in there:
                self.reject(official.SHARD_INDEX, f"names {tidy(name)!r}, which is not there")


class _Shard:
    """One archive while it is being indexed."""

    def __init__(self, source: TarSource, path: Path, name: str, file: BinaryIO) -> None:
        self.source, self.path, self.name, self.file = source, path, name, file
        self.fault = ""
        """Why none of its samples can be used."""
        self.official = self._official_files()
        self.keys: set[str] = set()
        self.by_name: dict[str, Member] = {}

    def read(self) -> None:
        found = list(members(self.path, self._refuse))
        self.by_name = {member.name: member for member in reversed(found)}
        grouped = group([member.name for member in found])
        for sample in grouped.samples:
            self._take(sample, found[sample.place])
        for name, reason in grouped.refused.items():
            self._refuse(name, reason)
        for kind, count in grouped.not_read.items():
            self.source.note(self.name)(f"{count} members {printable(kind):.60} not read")

    def _refuse(self, member: str, reason: str) -> None:
        self.source.reject(f"{self.name}:{member}" if member else self.name, reason)

    def _take(self, sample: Named, picture: Member) -> None:
        note = self.source.note(f"{self.name}:{sample.key}")
        try:
            captions, facts, own = self._described(sample, note)
        except DataError as error:
            self._refuse(picture.name, str(error))
            return
        taken = self.source.add(
            self._unique(own or sample.key),
            cast(BinaryIO, io.BufferedReader(_Window(self.file, picture))),
            f"{self.name}:{picture.name}",
            captions=captions,
            facts=facts,
        )
        if taken:
            self.source.places.append((self.path, picture))

    def _described(
        self, sample: Named, note: Note
    ) -> tuple[tuple[Caption, ...], dict[str, float], str]:
        """Captions, facts and the sample's own key, or ""; DataError for what is no text."""
        if self.fault:
            raise DataError(self.fault)
        texts, rows = list[str](), list[Row]()
        for name in sample.beside:
            is_text = suffix_of(name) in TEXTS
            most = MOST_TEXT_BYTES if is_text else MOST_JSON_BYTES
            content = self._content(self.by_name[name], most, note)
            if content is None:
                continue
            try:
                if is_text:
                    texts.append(decode_text(content))
                else:
                    rows.append(load_object(content, note))
            except DataError as error:
                raise DataError(f"has a text that cannot be read: {name!r} {error}") from None
        captions = captions_beside(texts, rows, note)
        if files := self.official.get(one_spelling(sample.key)):
            captions = official.captions_with_suffixes(captions, files, note)
        facts = {name: value for row in rows for name, value in facts_of(row, note).items()}
        keys = (row.get("key") for row in rows)
        return captions, facts, next((key for key in keys if isinstance(key, str) and key), "")

    def _unique(self, key: str) -> str:
        """Shards may each count from 0: then the key of a later one begins with its name."""
        again = key in self.keys
        self.keys.add(key)
        return f"{self.path.stem}/{key}" if key in self.source and not again else key

    def _content(self, member: Member, most: int, note: Note) -> bytes | None:
        if member.size > most:
            note(f"{member.name!r} was left out: more than {most:,} bytes")
            return None
        self.file.seek(member.offset)
        return self.file.read(member.size)

    def _official_files(self) -> dict[str, dict[str, Any]]:
        """What the caption files beside the shard say, by key and by suffix."""
        found: dict[str, dict[str, Any]] = defaultdict(dict)
        stem = self.path.stem
        for path in sorted(self.path.parent.iterdir()):
            suffix = path.stem.removeprefix(stem)
            if path.suffix.lower() != ".json" or not path.stem.startswith(stem):
                continue
            if suffix and not suffix.startswith("_"):
                continue
            name = path.relative_to(self.source.folder).as_posix()
            try:
                content = _object(path, self.source.folder, self.source.note(name))
            except DataError as error:
                self.fault = f"has captions in {name!r}, which {error}"
                continue
            self.source.files.add(name)
            for key, value in content.items():
                if isinstance(value, Mapping):
                    found[one_spelling(key)][suffix] = value
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


def _object(path: Path, root: Path, note: Note) -> Row:
    """A JSON file's object; DataError if it is no text."""
    try:
        content = read_inside(path, root, most=MOST_SIDECAR_BYTES)
    except DataError as error:
        note(f"{error}; it was left out")
        return {}
    return load_object(content, note)

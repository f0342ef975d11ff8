"""Tar shards: WebDataset, img2dataset, or any packed folder of pictures.

    KEY.jpg  KEY.txt KEY.caption  KEY.json      in any order; see `samples.py` and `beside.py`

The text is one caption, the JSON has the fields of `fields.py` (as img2dataset's), and the caption
files of `official.py` may lie beside a shard. Archives are indexed when opened and read in place.
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
    Row,
    Warn,
    captions_beside,
    load_object,
    measurements_of,
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
    """The samples of shards, in the order of the shards and of their members."""

    def __init__(self, folder: Path, shards: Sequence[Path], *, limits: Limits = LIMITS) -> None:
        super().__init__(str(folder), limits=limits)
        self.folder, self.shards = folder, list(shards)
        self.members: list[tuple[Path, Member]] = []
        """The shard and the member of each record's picture."""
        self.files: set[str] = set()
        """The files that were read, below the folder."""
        for shard in self.shards:
            name = shard.relative_to(self.folder).as_posix()
            self.files.add(name)
            try:
                file = open_inside(shard, self.folder)
            except DataError as error:
                self.reject(name, str(error))
                continue
            with file:
                _Shard(self, shard, name, file).read()
        self._report_missing()

    def picture(self, index: int) -> bytes:
        shard, member = self.members[index]
        try:
            with shard.open("rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise DataError(f"{shard} cannot be read ({error.strerror or error})") from None
        if len(content) != member.size:
            raise DataError(f"{shard} has lost the end of {member.name!r}")
        return content

    def _report_missing(self) -> None:
        """Reject the shards that wids-meta.json lists and that are missing."""
        index = self.folder / official.SHARD_INDEX
        if not index.is_file():
            return
        self.files.add(official.SHARD_INDEX)
        try:
            index = _object(index, self.folder, self.warner(official.SHARD_INDEX))
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
    """One archive during indexing."""

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
            self._take(sample, found[sample.index])
        for name, reason in grouped.refused.items():
            self._refuse(name, reason)
        for kind, count in grouped.not_read.items():
            self.source.warner(self.name)(f"{count} members {printable(kind):.60} not read")

    def _refuse(self, member: str, reason: str) -> None:
        self.source.reject(f"{self.name}:{member}" if member else self.name, reason)

    def _take(self, sample: Named, picture: Member) -> None:
        warn = self.source.warner(f"{self.name}:{sample.key}")
        try:
            captions, measurements, own = self._described(sample, warn)
        except DataError as error:
            self._refuse(picture.name, str(error))
            return
        key = own or sample.key
        again = key in self.keys
        self.keys.add(key)
        # Shards may each count from 0: the keys of later shards get the shard's name in front.
        taken = self.source.add(
            f"{self.path.stem}/{key}" if key in self.source and not again else key,
            cast(BinaryIO, io.BufferedReader(_Window(self.file, picture))),
            f"{self.name}:{picture.name}",
            captions=captions,
            measurements=measurements,
        )
        if taken:
            self.source.members.append((self.path, picture))

    def _described(
        self, sample: Named, warn: Warn
    ) -> tuple[tuple[Caption, ...], dict[str, float], str]:
        """Captions, measurements and the key in its JSON, or ""; DataError for undecodable text."""
        if self.fault:
            raise DataError(self.fault)
        texts, rows = list[str](), list[Row]()
        for name in sample.beside:
            is_text = suffix_of(name) in TEXTS
            most = MOST_TEXT_BYTES if is_text else MOST_JSON_BYTES
            member = self.by_name[name]
            if member.size > most:
                warn(f"{member.name!r} was left out: more than {most:,} bytes")
                continue
            self.file.seek(member.offset)
            content = self.file.read(member.size)
            try:
                if is_text:
                    texts.append(decode_text(content))
                else:
                    rows.append(load_object(content, warn))
            except DataError as error:
                raise DataError(f"has a text that cannot be read: {name!r} {error}") from None
        captions = captions_beside(texts, rows, warn)
        if files := self.official.get(one_spelling(sample.key)):
            captions = official.captions_with_suffixes(captions, files, warn)
        measurements: dict[str, float] = {}
        for row in rows:
            measurements |= measurements_of(row, warn)
        keys = (row.get("key") for row in rows)
        key = next((key for key in keys if isinstance(key, str) and key), "")
        return captions, measurements, key

    def _official_files(self) -> dict[str, dict[str, Any]]:
        """The content of the caption files beside the shard, by key and suffix."""
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
                content = _object(path, self.source.folder, self.source.warner(name))
            except DataError as error:
                self.fault = f"has captions in {name!r}, which {error}"
                continue
            self.source.files.add(name)
            for key, value in content.items():
                if isinstance(value, Mapping):
                    found[one_spelling(key)][suffix] = value
        return found


class _Window(io.RawIOBase):
    """The bytes of one member as a file."""

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


def _object(path: Path, root: Path, warn: Warn) -> Row:
    """The object in a JSON file; {} and a warning if unreadable, DataError if it is no text."""
    try:
        content = read_inside(path, root, most=MOST_SIDECAR_BYTES)
    except DataError as error:
        warn(f"{error}; it was left out")
        return {}
    return load_object(content, warn)

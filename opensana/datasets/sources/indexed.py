"""The base of all sources: headers are read when a source is opened, pixels on access.

So length, order and keys are fixed, and bad headers are refused before training starts.
"""

from collections.abc import Container, Iterable, Mapping
from typing import BinaryIO

from opensana.datasets.record import Caption, Record, Reject
from opensana.datasets.sources.beside import ROWS, TEXTS, is_hidden, suffix_of
from opensana.datasets.sources.fields import Warn, tidy
from opensana.errors import DataError
from opensana.pictures.decode import LIMITS, Limits, probe


class Indexed:
    """A source with a list of records; subclasses find them and read the pictures."""

    def __init__(self, where: str, *, limits: Limits = LIMITS) -> None:
        self.where, self.limits = where, limits
        self.records: list[Record] = []
        self.rejects: list[Reject] = []
        self.warnings: list[Reject] = []
        """What was changed or left out of samples that are used."""
        self.files_read = 0
        self.not_read: list[Reject] = []
        """Files of the folder of which nothing was read."""
        self.paths: list[str] = []
        """The path of each record's picture, for messages."""
        self._keys: set[str] = set()

    def __len__(self) -> int:
        return len(self.records)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def record(self, index: int) -> Record:
        return self.records[index]

    def picture(self, index: int) -> bytes:
        """The encoded picture (PNG, JPEG or WebP); DataError if it cannot be read."""
        raise NotImplementedError

    def reject(self, path: str, reason: str) -> None:
        self.rejects.append(Reject(printable(path), reason))

    def warner(self, path: str) -> Warn:
        """A callback for warnings about one sample."""
        return lambda reason: self.warnings.append(Reject(printable(path), reason))

    def count_files(
        self, present: Iterable[str], read: Container[str], why: Mapping[str, str] | None = None
    ) -> None:
        """Count the files that were read, and list the others with the reason."""
        for name in present:
            if name in read:
                self.files_read += 1
            else:
                reason = (why or {}).get(name) or _why_not_read(name)
                self.not_read.append(Reject(printable(name), reason))

    def add(
        self,
        key: str,
        picture: bytes | BinaryIO,
        path: str,
        *,
        captions: Iterable[Caption],
        measurements: Mapping[str, float],
    ) -> bool:
        """Add a sample, or reject it if its picture's header is bad or its key is not new."""
        key = printable(key)
        if key in self._keys:
            self.reject(path, f"has the key {key!r} of an earlier sample")
            return False
        try:
            header = probe(picture, limits=self.limits)
        except DataError as error:
            self.reject(path, str(error))
            return False
        self._keys.add(key)
        self.paths.append(printable(path))
        size = header.width, header.height
        self.records.append(Record(key, *size, tuple(captions), dict(measurements)))
        return True


def printable(name: str) -> str:
    r"""A file name as valid Unicode; other bytes are written \xNN."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that encode no byte
        return tidy(name)


def _why_not_read(name: str) -> str:
    if is_hidden(name):
        return "is hidden"
    suffix = suffix_of(name)
    if suffix in TEXTS or suffix in ROWS:
        return "has no picture of its name"
    return f"is of the kind {printable(suffix):.40}" if suffix else "has no suffix"

"""What all sources share: every header is read when the source is opened, pixels only when asked.

So the length, the order and the keys are fixed from the start, and whatever a header can tell is
refused before training begins.
"""

from collections.abc import Container, Iterable, Mapping
from typing import BinaryIO

from opensana.datasets.record import Caption, Record, Reject
from opensana.datasets.sources.beside import ROWS, TEXTS, is_hidden, suffix_of
from opensana.datasets.sources.fields import Note, tidy
from opensana.errors import DataError
from opensana.pictures.decode import LIMITS, Limits, probe


class Indexed:
    """A source with its records in a list; a subclass finds them and reads the pictures."""

    def __init__(self, where: str, *, limits: Limits = LIMITS) -> None:
        self.where, self.limits = where, limits
        self.records: list[Record] = []
        self.rejects: list[Reject] = []
        self.notes: list[Reject] = []
        """What was changed or left out of samples that are used all the same."""
        self.files_read = 0
        self.not_read: list[Reject] = []
        """Files of the folder that nothing was read of: with those read, all that there are."""
        self.paths: list[str] = []
        """Where each record's picture lies, for people."""
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

    def note(self, path: str) -> Note:
        """Where remarks on one sample go."""
        return lambda reason: self.notes.append(Reject(printable(path), reason))

    def count_files(
        self, present: Iterable[str], read: Container[str], why: Mapping[str, str] | None = None
    ) -> None:
        """Tell the files that were read from those that were not, which are named."""
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
        facts: Mapping[str, float],
    ) -> bool:
        """Take a sample if its picture's header is good and its key is new; else it is refused."""
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
        self.records.append(Record(key, header.width, header.height, tuple(captions), dict(facts)))
        return True


def printable(name: str) -> str:
    r"""A file name as text that UTF-8 can hold; other bytes are written \xNN."""
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return tidy(name)


def _why_not_read(name: str) -> str:
    if is_hidden(name):
        return "is hidden"
    suffix = suffix_of(name)
    if suffix in TEXTS or suffix in ROWS:
        return "has no picture of its name"
    return f"is of the kind {printable(suffix):.40}" if suffix else "has no suffix"

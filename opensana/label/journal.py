"""Labels on disk: append-only JSON lines, so a kill costs at most the last line.

    LABELS/
        makers.json      the caption sources: id -> captioner, version, prompt, settings
        captions.jsonl   {"key", "maker", "text"}
        scores.jsonl     {"key", "maker", "scorer", "score", "windows"}
        facts.jsonl      {"key", "sharpness", "dhash"}
        rejects.jsonl    {"key", "maker", "reason"}: failures, void once the caption is there
        blocks/          the same lines from a cluster's workers, one file per block

"maker" is the id of a caption source. Every line has an identity (a caption's key and maker), which
occurs once.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opensana.errors import DataError
from opensana.files.lock import held
from opensana.files.writing import remove_partial, write_atomic
from opensana.label.captioner import CaptionSource, Failure

IDENTITY = {
    "captions": ("key", "maker"),
    "scores": ("key", "maker", "scorer"),
    "facts": ("key",),
    "rejects": ("key", "maker", "reason"),
}
SECONDS_BETWEEN_SYNCS = 1.0

Line = Mapping[str, Any]


class Journal:
    """One file of lines, open for appending; an incomplete last line is dropped."""

    def __init__(self, path: Path, kind: str) -> None:
        self.kind = kind
        _drop_torn_line(path)
        self.seen = {_identity(kind, line) for line in read_lines(path, kind)}
        self._stream = path.open("ab", buffering=0)
        self._synced = time.monotonic()

    def __contains__(self, identity: tuple[str, ...]) -> bool:
        return identity in self.seen

    def add(self, line: Line) -> None:
        """Append a line, unless its identity is there already."""
        identity = _identity(self.kind, line)
        if identity in self.seen:
            return
        data = _encode(line)
        start = self._stream.seek(0, os.SEEK_END)
        if self._stream.write(data) != len(data):
            self._stream.truncate(start)
            raise DataError(f"{self._stream.name}: the disk is full; the same command goes on")
        self.seen.add(identity)
        if time.monotonic() - self._synced > SECONDS_BETWEEN_SYNCS:
            self.sync()

    def sync(self) -> None:
        """Flush all lines to disk."""
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def close(self) -> None:
        self.sync()
        self._stream.close()


class LabelFolder:
    """A folder of labels, open for its only writer; use `writing`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journals = {kind: Journal(folder / f"{kind}.jsonl", kind) for kind in IDENTITY}
        remove_partial(folder / "blocks")
        self.fold()

    def has(self, kind: str, *identity: str) -> bool:
        return identity in self.journals[kind]

    def add(self, kind: str, lines: Iterable[Line]) -> None:
        for line in lines:
            self.journals[kind].add(line)

    def fail(self, key: str, maker: str, failure: Failure) -> None:
        """Record that a caption source, a scorer or a measurement failed on a picture."""
        self.add("rejects", [reject_line(key, maker, failure)])

    def register(self, source: CaptionSource) -> None:
        """Describe a caption source in makers.json."""
        known = read_caption_sources(self.folder)
        if source.id not in known:
            text = json.dumps(known | {source.id: asdict(source)}, indent=2) + "\n"
            write_atomic(self.folder / "makers.json", lambda new: new.write_text(text, "ascii"))

    def fold(self) -> None:
        """Move the lines of finished blocks into the journals."""
        for kind, journal in self.journals.items():
            blocks = _blocks(self.folder, kind)
            for block in blocks:
                self.add(kind, read_lines(block, kind))
            journal.sync()
            for block in blocks:
                block.unlink()

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()


@contextmanager
def writing(folder: str | Path) -> Iterator[LabelFolder]:
    """Lock and open a folder of labels; DataError if another process has it."""
    folder = Path(folder)
    (folder / "blocks").mkdir(parents=True, exist_ok=True)
    busy = "{} is being written by {}; wait for it or choose another folder"
    with held(folder, lambda owner: DataError(busy.format(folder, owner))):
        labels = LabelFolder(folder)
        try:
            yield labels
        finally:
            labels.close()


def write_block(folder: Path, kind: str, name: str, lines: Iterable[Line]) -> None:
    """Write a worker's lines as one file, atomically."""
    write_lines(folder / "blocks" / f"{kind}-{name}.jsonl", lines)


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write a file of lines, atomically."""
    content = b"".join(_encode(line) for line in lines)
    write_atomic(path, lambda new: new.write_bytes(content))


def reject_line(key: str, maker: str, failure: Failure) -> Line:
    return {"key": key, "maker": maker, "reason": failure.reason}


def all_lines(folder: Path, kind: str) -> Iterator[Line]:
    """The lines of a kind, one per identity, also while another process writes."""
    seen: set[tuple[str, ...]] = set()
    # The journal last: it gets the lines of blocks that vanish meanwhile.
    for path in [*_blocks(folder, kind), folder / f"{kind}.jsonl"]:
        for line in read_lines(path, kind):
            identity = _identity(kind, line)
            if identity not in seen:
                seen.add(identity)
                yield line


def read_lines(path: Path, kind: str) -> Iterator[Line]:
    """The complete lines of a file, none if it is missing; DataError for a damaged line."""
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        for number, data in enumerate(stream, start=1):
            if data.endswith(b"\n"):
                yield _decode(data, kind, f"{path}, line {number}")


def read_caption_sources(folder: Path) -> dict[str, Any]:
    """Read makers.json; {} if it is missing."""
    try:
        sources = json.loads((folder / "makers.json").read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{folder / 'makers.json'} cannot be read: {error}") from error
    if not isinstance(sources, dict):
        raise DataError(f"{folder / 'makers.json'} is not an object of makers")
    return sources


def _decode(data: bytes, kind: str, where: str) -> Line:
    try:
        line = json.loads(data)
        if all(isinstance(line[name], str) for name in IDENTITY[kind]):
            return line
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise DataError(f"{where} is damaged; delete that line, and the same command makes it anew")


def _encode(line: Line) -> bytes:
    return (json.dumps(line) + "\n").encode("ascii")  # lone surrogates in file names become \udcXX


def _identity(kind: str, line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in IDENTITY[kind])


def _blocks(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / "blocks").glob(f"{kind}-*.jsonl"))


def _drop_torn_line(path: Path) -> None:
    """Truncate the file after its last line break."""
    if not path.exists():
        return
    with path.open("r+b") as stream:
        end = start = stream.seek(0, os.SEEK_END)
        while start > 0:
            start = max(0, start - 65_536)
            stream.seek(start)
            found = stream.read(min(65_536, end - start)).rfind(b"\n")
            if found >= 0:
                stream.truncate(start + found + 1)
                return
        stream.truncate(0)

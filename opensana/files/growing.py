"""Append-only files that grow together, with crash-safe commits.

Appended rows are durable from the next `commit` on: one atomic rename of a journal with the length
of every file. Opening the folder again truncates all files to the last commit. Nothing is held in
memory, and nothing is written twice.

Files named .npy are NumPy arrays, valid once `finish` has written their headers; all others are
plain bytes.
"""

import fcntl
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opensana.errors import DataError
from opensana.files.writing import sync

JOURNAL = "progress.json"


@dataclass(frozen=True)
class Extent:
    """How many rows a file has, and their dtype and shape."""

    rows: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def header(self) -> bytes:
        """The .npy header; NumPy pads it, so its length does not depend on the row count."""
        stream = io.BytesIO()
        shape = (self.rows, *self.shape)
        fields = {"descr": self.dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, fields)
        return stream.getvalue()

    def end(self, name: str) -> int:
        """The length of the file in bytes."""
        return len(self.header) * name.endswith(".npy") + self.rows * self.row_bytes


class GrowingFiles:
    """The files of one folder, locked by one process at a time."""

    def __init__(self, folder: Path) -> None:
        """Open a new or unfinished folder at its last commit.

        DataError if another process has it, or if a file is shorter than at the last commit.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = os.open(folder, os.O_RDONLY)  # the lock ends with the descriptor
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DataError(f"another process is writing {folder}; wait for it") from None
        self._dirty: set[str] = set()
        journal = folder / JOURNAL
        found = json.loads(journal.read_text("utf-8")) if journal.exists() else {}
        self.state: dict[str, Any] = found.get("state", {})
        self._extents = {
            name: Extent(values["rows"], values["dtype"], tuple(values["shape"]))
            for name, values in found.get("files", {}).items()
        }
        # Roll back to the last commit.
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and name != JOURNAL and name not in self._extents:
                path.unlink()
        for name, extent in self._extents.items():
            path, end = folder / name, extent.end(name)
            if not path.is_file() or path.stat().st_size < end:
                raise DataError(f"{path} is damaged; delete {folder} and start again")
            os.truncate(path, end)

    def rows(self, name: str) -> int:
        """The number of rows of a file, committed or not."""
        return self._extents[name].rows if name in self._extents else 0

    def append(self, name: str, rows: np.ndarray) -> None:
        """Append rows [n, ...] to a file; all its rows have one dtype and shape."""
        new = Extent(0, rows.dtype.str, rows.shape[1:])
        extent = self._extents.get(name, new)
        if replace(extent, rows=0) != new:
            raise DataError(f"{name} has rows of {extent.shape}, got {new.shape} {new.dtype}")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("r+b" if name in self._extents else "w+b") as stream:
            stream.seek(extent.end(name))
            stream.write(rows.tobytes())
        self._extents[name] = replace(extent, rows=extent.rows + len(rows))
        self._dirty.add(name)

    def append_lines(self, name: str, values: Iterable[Any]) -> None:
        """Append JSON lines to NAME.jsonl, and the end of each to NAME-offsets.npy."""
        text, offsets = f"{name}.jsonl", f"{name}-offsets.npy"
        lines = [(json.dumps(value, ensure_ascii=False) + "\n").encode() for value in values]
        ends = self.rows(text) + np.cumsum([len(line) for line in lines], dtype=np.int64)
        self.append_ends(offsets, ends)
        self.append(text, np.frombuffer(b"".join(lines), np.uint8))

    def append_ends(self, name: str, ends: np.ndarray) -> None:
        """Append the end offsets of ragged rows; the file's first row is 0."""
        if not self.rows(name):
            self.append(name, np.zeros(1, np.int64))
        self.append(name, ends)

    def commit(self) -> None:
        """Make all rows and `state` durable."""
        written = {self.folder / name for name in self._dirty}
        for path in written | {path.parent for path in written}:
            sync(path)
        self._dirty.clear()
        files = {name: asdict(extent) for name, extent in sorted(self._extents.items())}
        partial = self.folder / f"{JOURNAL}.new"
        partial.write_text(json.dumps({"files": files, "state": self.state}), "utf-8")
        sync(partial)
        os.replace(partial, self.folder / JOURNAL)
        sync(self.folder)

    def finish(self) -> None:
        """Commit, and complete the headers of the arrays."""
        self.commit()
        for name, extent in self._extents.items():
            if name.endswith(".npy"):
                with (self.folder / name).open("r+b") as stream:
                    stream.write(extent.header)
                sync(self.folder / name)

    def close(self) -> None:
        """Release the folder."""
        os.close(self._lock)


class Lines(Sequence[Any]):
    """The JSON lines that `append_lines` wrote, read one by one from the memory-mapped file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.offsets = np.load(folder / f"{name}-offsets.npy", mmap_mode="r", allow_pickle=False)
        path = folder / f"{name}.jsonl"
        if path.stat().st_size != self.offsets[-1]:
            raise DataError(f"{path} is damaged; encode it again")
        self._bytes = np.memmap(path, np.uint8, "r") if len(self) else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return json.loads(self._bytes[self.offsets[index] : self.offsets[index + 1]].tobytes())

"""Store: jobs and pictures on disk, in one SQLite file and a folder a job.

A job is there before its client hears of it. A picture is written whole, then noted. So after
`kill -9` every job is finished or begun again, and no picture is half there.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from opensana.errors import ConfigError
from opensana.files.lock import held
from opensana.files.user_cache import cache_folder
from opensana.files.writing import remove_partial, write_atomic
from opensana.serve.jobs.job import FINISHED, ImageRecord, JobError, JobRecord, State
from opensana.serve.jobs.order import INPUT_NAMES, InputName, Order, read_order

FORMAT = 1
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    requested TEXT NOT NULL,
    inputs TEXT NOT NULL,
    images TEXT NOT NULL,
    notes TEXT NOT NULL,
    error TEXT,
    attempts INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    idempotency TEXT,
    digest TEXT NOT NULL
);
CREATE UNIQUE INDEX idempotency ON jobs (key, idempotency) WHERE idempotency IS NOT NULL;
CREATE INDEX of_key ON jobs (key, number);
CREATE INDEX by_end ON jobs (finished);
"""


class Store:
    """Safe from any thread; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock, self._held = folder, threading.Lock(), ExitStack()
        try:
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            self._held.enter_context(held(folder, lambda holder: _busy(folder, holder)))
        except OSError as error:
            raise _unusable(folder, error.strerror) from error
        try:
            self._db = sqlite3.connect(folder / "jobs.sqlite3", check_same_thread=False)
            version = self._prepare()
        except sqlite3.Error as error:
            raise _unusable(folder, error) from error
        if version not in (0, FORMAT):
            raise ConfigError(f"{folder} is of another version of opensana; try another --folder")
        self._remove_strays()

    def _prepare(self) -> int:
        """The format that the file had; 0 is a new one."""
        self._db.row_factory = sqlite3.Row
        with self._db:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(SCHEMA + f"PRAGMA user_version = {FORMAT};")
        return version

    def close(self) -> None:
        with self._lock:
            self._db.close()
            self._held.close()

    def insert(self, record: JobRecord, order: Order, idempotency: str | None) -> None:
        """A new job, with the pictures that came with it; `order` as it was asked."""
        folder, size = self._of(record.id), sum(map(len, order.pictures.values()))
        if order.pictures:
            folder.mkdir(exist_ok=True)
        for name, data in order.pictures.items():
            write_atomic(folder / name, lambda path, data=data: path.write_bytes(data))
        with self._writing() as db:
            complete = replace(order, request=record.request, loras=record.loras)
            row = _row(record) | {
                "id": record.id,
                "key": record.key,
                "kind": record.kind,
                "created": record.created,
                "requested": complete.text,
                "inputs": json.dumps(record.inputs),
                "bytes": size,
                "idempotency": idempotency,
                "digest": order.digest,
            }
            marks = ", ".join(f":{name}" for name in row)
            db.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", row)

    def update(self, record: JobRecord) -> None:
        """What changes in a job while it runs."""
        row = _row(record)
        with self._writing() as db:
            sets = ", ".join(f"{name} = :{name}" for name in row)
            db.execute(f"UPDATE jobs SET {sets} WHERE id = :id", row | {"id": record.id})

    def write_picture(self, id: str, index: int, png: bytes) -> None:
        folder = self._of(id)
        folder.mkdir(exist_ok=True)
        write_atomic(folder / f"{index}.png", lambda path: path.write_bytes(png))
        with self._writing() as db:
            db.execute("UPDATE jobs SET bytes = bytes + ? WHERE id = ?", (len(png), id))

    def picture(self, id: str, index: int) -> bytes | None:
        return _content(self._of(id) / f"{int(index)}.png")

    def input(self, id: str, name: InputName) -> bytes | None:
        assert name in INPUT_NAMES
        return _content(self._of(id) / name)

    def get(self, id: str) -> JobRecord | None:
        rows = self._rows("WHERE id = ?", id)
        return _record(rows[0]) if rows else None

    def order(self, id: str) -> Order:
        """What a job that is there asks for, with everything decided."""
        (row,) = self._rows("WHERE id = ?", id)
        names: list[InputName] = json.loads(row["inputs"])
        pictures: dict[InputName, bytes] = {}
        for name in names:
            data = self.input(id, name)
            if data is not None:
                pictures[name] = data
        return read_order(row["requested"], pictures)

    def by_idempotency(self, key: str, idempotency: str) -> tuple[JobRecord, str] | None:
        """The job of an idempotency key, and the digest of its order."""
        rows = self._rows("WHERE key = ? AND idempotency = ?", key, idempotency)
        return (_record(rows[0]), rows[0]["digest"]) if rows else None

    def of_key(self, key: str, limit: int, before: str | None) -> list[JobRecord]:
        """Jobs of a key, newest first."""
        where = "WHERE key = ? AND number < coalesce((SELECT number FROM jobs WHERE id = ?), 1e18)"
        rows = self._rows(where + " ORDER BY number DESC LIMIT ?", key, before, limit)
        return [_record(row) for row in rows]

    def unfinished(self) -> list[JobRecord]:
        """Oldest first."""
        marks = ", ".join("?" * len(FINISHED))
        rows = self._rows(f"WHERE state NOT IN ({marks}) ORDER BY number", *FINISHED)
        return [_record(row) for row in rows]

    def delete(self, id: str) -> None:
        with self._writing() as db:
            db.execute("DELETE FROM jobs WHERE id = ?", (id,))
        shutil.rmtree(self._of(id), ignore_errors=True)

    def prune(self, *, before: float, most_bytes: int) -> int:
        """Delete finished jobs that ended before a time, then the oldest until the rest fits."""
        rows = self._rows("WHERE finished IS NOT NULL ORDER BY finished DESC")
        total, old = 0, list[str]()
        for row in rows:
            total += row["bytes"]
            if row["finished"] < before or total > most_bytes:
                old.append(row["id"])
        for id in old:
            self.delete(id)
        return len(old)

    def _of(self, id: str) -> Path:
        assert id.replace("_", "").replace("-", "").isalnum()
        return self._folder / "jobs" / id

    def _rows(self, where: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(f"SELECT * FROM jobs {where}", values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._db:
            yield self._db

    def _remove_strays(self) -> None:
        """Folders of jobs that were never noted, or are no more; what was written half."""
        known = {row["id"] for row in self._rows("")}
        for folder in (self._folder / "jobs").iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        for job in self.unfinished():
            remove_partial(self._of(job.id))


def usual_folder(model: str | Path) -> Path:
    """Where the jobs of a model are kept, whatever the port: one server has them at a time."""
    path, name = Path(model).expanduser(), str(model).replace("/", "--")
    if path.exists():  # two folders of one name are told apart
        path = path.resolve()
        name = f"{path.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    return cache_folder() / "serve" / name


def _busy(folder: Path, holder: str) -> ConfigError:
    return ConfigError(
        f"another server ({holder}) keeps its jobs in {folder}; stop it, or give this one a "
        "--folder of its own"
    )


def _unusable(folder: Path, why: object) -> ConfigError:
    return ConfigError(f"{folder} cannot be used: {why}; try another --folder")


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _row(record: JobRecord) -> dict[str, Any]:
    """The columns that change."""
    return {
        "state": record.state,
        "started": record.started,
        "finished": record.finished,
        "images": json.dumps([asdict(one) for one in record.images]),
        "notes": json.dumps(record.notes),
        "error": record.error and json.dumps(asdict(record.error)),
        "attempts": record.attempts,
    }


def _record(row: sqlite3.Row) -> JobRecord:
    order = read_order(row["requested"], {})
    state: State = row["state"]
    return JobRecord(
        id=row["id"],
        key=row["key"],
        kind=row["kind"],
        state=state,
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        request=order.request,
        images=tuple(ImageRecord(**one) for one in json.loads(row["images"])),
        inputs=tuple(json.loads(row["inputs"])),
        control_scale=order.control_scale,
        loras=order.loras,
        notes=tuple(json.loads(row["notes"])),
        error=JobError(**json.loads(row["error"])) if row["error"] else None,
        attempts=row["attempts"],
    )

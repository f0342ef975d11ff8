"""The events of a job: a log that any number of readers follow, resume and leave.

Of what is only of interest while it is new, steps and previews, the log keeps the newest of each
picture. So a slow reader skips some, the log stays small, and one that comes back misses nothing.
"""

import asyncio
import base64
import io
import secrets
import threading
from collections.abc import AsyncIterator, Hashable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image

EventType = Literal[
    "job", "queued", "started", "step", "preview", "image", "note",
    "completed", "failed", "cancelled",
]  # fmt: skip
Last = Literal["completed", "failed", "cancelled"]
LAST: tuple[Last, ...] = get_args(Last)
NEWEST_ONLY: tuple[EventType, ...] = ("queued", "step", "preview")


@dataclass(frozen=True)
class Event:
    id: str
    """For `Last-Event-ID`."""
    type: EventType
    data: dict[str, Any]


class EventLog:
    """Written by the worker's thread, read from event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._boot = secrets.token_hex(4)  # ids of another process's log mean nothing here
        self._count = 0
        self._kept: dict[Hashable, Event] = {}  # in order of their ids
        self._readers: dict[asyncio.Event, tuple[asyncio.AbstractEventLoop, bool]] = {}
        self._closed = False

    def add(self, type: EventType, **data: Any) -> None:
        with self._lock:
            self._count += 1
            event = Event(f"{self._boot}-{self._count}", type, {"type": type} | data)
            slot = (type, data.get("image")) if type in NEWEST_ONLY else self._count
            self._kept.pop(slot, None)
            self._kept[slot] = event
            self._wake()

    def close(self) -> None:
        """Nothing more comes, though the job is not finished."""
        with self._lock:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        for wake, (loop, _) in self._readers.items():
            with suppress(RuntimeError):  # a loop that is closed has no reader any more
                loop.call_soon_threadsafe(wake.set)

    @property
    def read(self) -> bool:
        """Whether anybody follows it."""
        return bool(self._readers)

    @property
    def previews_wanted(self) -> bool:
        """Whether any reader asked for them."""
        with self._lock:
            return any(previews for _, previews in self._readers.values())

    def since(self, id: str | None) -> list[Event]:
        """Events after one of this log; all for an id of another."""
        boot, _, number = (id or "").partition("-")
        after = int(number) if boot == self._boot and number.isdecimal() else 0
        with self._lock:
            return [one for one in self._kept.values() if int(one.id.split("-")[1]) > after]

    def knows(self, id: str | None) -> bool:
        """Whether an id is of this log."""
        return id is not None and id.split("-")[0] == self._boot

    @property
    def last_id(self) -> str:
        with self._lock:
            return f"{self._boot}-{self._count}"

    async def follow(self, after: str | None, *, previews: bool = False) -> AsyncIterator[Event]:
        """Events after that one as they come, until the job's last or `close`."""
        with self._reading(previews) as wake:
            while True:
                wake.clear()
                for event in self.since(after):
                    after = event.id
                    if event.type != "preview" or previews:
                        yield event
                    if event.type in LAST:
                        return
                if self._closed:
                    return
                await wake.wait()

    @contextmanager
    def _reading(self, previews: bool):
        wake = asyncio.Event()
        with self._lock:
            self._readers[wake] = (asyncio.get_running_loop(), previews)
        try:
            yield wake
        finally:
            with self._lock:
                del self._readers[wake]


def preview_event(image: Image.Image, index: int, step: int, steps: int) -> dict[str, Any]:
    """The data of a preview event."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {
        "image": index,
        "step": step,
        "steps": steps,
        "b64_json": base64.b64encode(buffer.getvalue()).decode(),
        "format": "png",
        "width": image.width,
        "height": image.height,
    }

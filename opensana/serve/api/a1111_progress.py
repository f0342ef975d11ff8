"""Whose progress is it? A1111 knows one job at a time; here each caller sees and ends its own.

With `id_task`, the `force_task_id` of a request, it is that job; without, the one at work.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from opensana.serve.errors import ApiError
from opensana.serve.gate.keys import Key
from opensana.serve.jobs.job import JobRecord
from opensana.serve.service import Service

MOST_TASKS = 1000
LOOKED_AT = 50
"""The newest of a caller's jobs, among which the one at work is looked for."""
WATCH_SECONDS = 10.0
"""How long previews are made after nobody asked for them any more."""


class Tasks:
    """Which job a caller's task is."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs: dict[tuple[str, str], str] = {}

    def note(self, caller: Key, task: str | None, record: JobRecord) -> None:
        """A job was begun, perhaps under a name of its client's."""
        if task:
            self._jobs[caller.name, task] = record.id
            while len(self._jobs) > MOST_TASKS:
                del self._jobs[next(iter(self._jobs))]

    def find(self, caller: Key, task: str | None) -> JobRecord | None:
        """The job of a task; without one, the caller's that is at work, else that is next."""
        if task:
            id = self._jobs.get((caller.name, task))
            return None if id is None else self._known(id, caller)
        jobs = self._service.jobs(caller, limit=LOOKED_AT)
        own = [one for one in reversed(jobs) if one.kind == "a1111" and not one.is_finished]
        return next((one for one in own if one.state == "running"), own[0] if own else None)

    def _known(self, id: str, caller: Key) -> JobRecord | None:
        try:
            return self._service.job(id, caller)
        except ApiError:
            return None


@dataclass
class _Watch:
    asked: float
    newest: str | None = None
    task: "asyncio.Task[None] | None" = None


class Previews:
    """The newest preview of jobs that clients ask about, followed only while they do."""

    def __init__(self, service: Service, clock: Callable[[], float] = time.monotonic) -> None:
        self._service, self._clock = service, clock
        self._watches: dict[str, _Watch] = {}

    def newest(self, record: JobRecord, caller: Key) -> str | None:
        """Base64 of a PNG; None until the first was made after the first time of asking."""
        watch = self._watches.get(record.id)
        if watch is None:
            watch = self._watches[record.id] = _Watch(self._clock())
            watch.task = asyncio.create_task(self._follow(record.id, caller, watch))
        watch.asked = self._clock()
        return watch.newest

    async def _follow(self, id: str, caller: Key, watch: _Watch) -> None:
        try:
            async with aclosing(self._service.events(id, caller, previews=True)) as events:
                async for event in events:
                    if event.type == "preview":
                        watch.newest = event.data["b64_json"]
                    if self._clock() - watch.asked > WATCH_SECONDS:
                        return
        finally:
            del self._watches[id]


def progress(record: JobRecord | None, preview: str | None) -> dict[str, Any]:
    """The answer of `GET /sdapi/v1/progress`; None is a server with nothing to do."""
    if record is None or record.is_finished:
        return _view(0.0, 0.0, record, current=None)
    return _view(max(record.progress, 0.01), record.eta or 0.0, record, current=preview)


def _view(share: float, eta: float, record: JobRecord | None, current: str | None) -> dict:
    busy = record is not None and not record.is_finished
    images = record.images if record is not None and busy else ()
    at_work = next((one for one in images if not one.done), None)
    return {
        "progress": round(share, 4),
        "eta_relative": round(eta, 2),
        "state": {
            "skipped": False,
            "interrupted": record is not None and record.state == "cancelled",
            "stopping_generation": False,
            "job": record.id if record is not None and busy else "",
            "job_count": len(images),
            "job_timestamp": str(int(record.created)) if record is not None else "0",
            "job_no": sum(one.done for one in images),
            "sampling_step": at_work.step if at_work else 0,
            "sampling_steps": at_work.steps if at_work else 0,
        },
        "current_image": current,
        "textinfo": None,
    }

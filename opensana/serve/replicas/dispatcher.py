"""Dispatcher: has replicas draw what is on the board, in place of a worker of this process.

It sends each picture to a replica, as many at once as the replicas have room for, in the order of
the schedule. Jobs stay here: a picture whose replica dies is sent again, from its own seed.
"""

import asyncio
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from opensana.serve.jobs.board import Board, Live
from opensana.serve.jobs.job import JobError
from opensana.serve.jobs.ledger import Ledger, job_error
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.relay import Message
from opensana.serve.logs import log, log_failure
from opensana.serve.painter import Plan
from opensana.serve.replicas.replica import Task

MOST_DEATHS = 3
"""How many replicas one picture may cost."""
LOOK_SECONDS = 1.0
"""How often it looks whether there are more replicas."""
FULL_SECONDS = 0.5
"""How long to wait where the replicas take no more."""


class ReplicaLost(Exception):
    """The replica died, and with it the pictures that it drew."""


class ReplicasFull(Exception):
    """No replica takes a picture now."""


class Replicas(ABC):
    """Painters elsewhere."""

    room: int
    """How many pictures one takes at once: more than it draws at once, so that it never waits."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many are ready."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """As `Painter.about`."""

    @abstractmethod
    def refresh(self) -> None:
        """As `Painter.refresh`."""

    @abstractmethod
    def plan(self, order: Order) -> Plan:
        """As `Painter.plan`; ApiError 503 where no replica answers."""

    @abstractmethod
    def draw(self, task: Task) -> AsyncGenerator[list[Message], None]:
        """As `Replica.draw`; ReplicaLost, ReplicasFull."""


@dataclass(eq=False)
class Away:
    """A picture that a replica draws."""

    step: int = 0
    since: float = field(default_factory=time.monotonic)
    """When it took its last step, or was sent."""


Following = dict[tuple[Live, int], asyncio.Task[None]]


class Dispatcher:
    """Has the methods of `Worker`. Its thread runs an event loop, which alone changes the jobs."""

    def __init__(self, replicas: Replicas, board: Board, ledger: Ledger) -> None:
        self._replicas, self._board, self._ledger = replicas, board, ledger
        self._following: Following = {}
        self._deaths = WeakKeyDictionary[Live, Counter[int]]()
        self._full_until = 0.0
        self._draining = self._stopped = False
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="dispatcher", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Send no more jobs; the thread ends once those begun are done."""
        self._draining = True
        self._board.tell()

    def stop(self) -> None:
        """Leave what is being drawn; unfinished jobs stay as they are in the store."""
        self._stopped = True
        self._board.tell()

    def join(self, seconds: float | None = None) -> bool:
        """Whether the thread has ended within so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def painters(self) -> int:
        """How many replicas are ready."""
        return self._replicas.count if self.alive else 0

    @property
    def state(self) -> Literal["loading", "ready"]:
        return "ready" if self._replicas.count else "loading"

    async def _run(self) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._board.on_change = wake
        try:
            while not self._stopped:
                changed.clear()
                self._board.pace.painters = max(1, self._replicas.count)
                self._end_cancelled()
                self._send(self._wanted())
                if self._draining and not self._following and not self._wanted():
                    return
                with suppress(TimeoutError):  # more replicas are told by nobody
                    await asyncio.wait_for(changed.wait(), LOOK_SECONDS)
        finally:
            self._board.on_change = lambda: None
            for following in self._following.values():
                following.cancel()
            await asyncio.gather(*self._following.values(), return_exceptions=True)

    def _end_cancelled(self) -> None:
        for live in self._board.all():
            if live.cancelled and live.taken:
                self._ledger.ended(live, "cancelled")
        for (live, _), following in self._following.items():
            if live.record.is_finished:
                following.cancel()

    def _wanted(self) -> dict[str, Live]:
        """The jobs of which pictures may be sent, by id."""
        jobs = self._board.all()
        if self._draining:
            jobs = [live for live in jobs if live.record.state == "running"]
        return {live.record.id: live for live in jobs}

    def _send(self, jobs: dict[str, Live]) -> None:
        """As many pictures as there is room for, in the order of the schedule."""
        room = self._replicas.count * self._replicas.room - len(self._following)
        now = time.monotonic()
        if room <= 0 or now < self._full_until:
            return
        waiting = [
            replace(one, lane=None)  # which ones take a step together is the replica's concern
            for live in jobs.values()
            for one in self._board.waiting(live)
            if self._may_go(live, one.index)
        ]
        for one in self._board.schedule.choose(waiting, now, room):
            live = jobs[one.job]
            if self._may_go(live, one.index) and self._board.take(live):
                live.canvases[one.index] = Away()
                following = asyncio.create_task(self._follow(live, one.index))
                self._following[live, one.index] = following

    def _may_go(self, live: Live, index: int) -> bool:
        """Whether a picture is here, and is no danger to others at work that are like it."""
        if index in live.canvases:
            return False
        return not (
            self._is_risky(live, index) and any(self._is_risky(*one) for one in self._following)
        )

    def _is_risky(self, live: Live, index: int) -> bool:
        """The next death would be the last: then it must be clear which picture was the cause."""
        return self._deaths.get(live, {}).get(index) == MOST_DEATHS - 1

    async def _follow(self, live: Live, index: int) -> None:
        try:
            order = await asyncio.to_thread(self._ledger.order, live)
            task = Task(
                id=f"{live.record.id}-{secrets.token_hex(4)}",
                key=live.record.key,
                index=index,
                order=order.text,
                pictures=order.pictures,
            )
            async with aclosing(self._replicas.draw(task)) as stream:
                async for messages in stream:
                    for message in messages:
                        self._tell(live, index, message)
            if not live.record.is_finished and index in live.open_images:
                raise ReplicaLost("it sent no picture")
        except ReplicasFull:
            self._full_until = time.monotonic() + FULL_SECONDS
        except ReplicaLost as error:
            log("replica_lost", job=live.record.id, image=index, message=str(error))
            self._lost(live, index)
        except Exception as error:
            log_failure(error)
            self._ledger.failed(live, job_error(error))
        finally:
            live.canvases.pop(index, None)
            del self._following[live, index]
            self._board.tell()

    def _tell(self, live: Live, index: int, message: Message) -> None:
        name, values = message
        if live.record.is_finished:
            return
        if name == "begun":
            self._ledger.begun(live)
        elif name == "turned":
            self._ledger.turned(live.plan.lane, **values)
        elif name == "stepped":
            self._stepped(live, index, **values)
        elif name == "noted":
            self._ledger.noted(live, **values)
        elif name == "drawn":
            self._board.pace.ended(time.monotonic() - self._away(live, index).since)
            self._ledger.drawn(live, index, **values)
            if not live.open_images:
                self._ledger.ended(live, "completed")
        else:
            assert name == "failed", name
            self._ledger.failed(live, JobError(**values))

    def _stepped(self, live: Live, index: int, step: int, preview: dict[str, Any] | None) -> None:
        away = self._away(live, index)
        away.step, away.since = step, time.monotonic()
        live.since = away.since
        self._board.schedule.charge(live.record.key, self._board.pace.seconds(live.plan.work, 0))
        self._ledger.stepped(live, index, step, lambda: preview)

    def _away(self, live: Live, index: int) -> Away:
        away = live.canvases[index]
        assert isinstance(away, Away)
        return away

    def _lost(self, live: Live, index: int) -> None:
        if live.record.is_finished:
            return
        deaths = self._deaths.setdefault(live, Counter())
        deaths[index] += 1
        if deaths[index] < MOST_DEATHS:
            self._ledger.lost(live, index)
        else:
            message = f"{MOST_DEATHS} replicas died while they drew this"
            self._ledger.failed(live, JobError(message, "interrupted"))

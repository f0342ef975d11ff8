"""Service: everything that an API may ask of the server, for one event loop and any handler."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import fastapi

from opensana import __version__
from opensana.serve.errors import CLIENT_LEFT, ApiError
from opensana.serve.gate.keys import Key
from opensana.serve.jobs.beginnings import new_record, unfinished
from opensana.serve.jobs.board import Board, Live
from opensana.serve.jobs.events import LAST, Event
from opensana.serve.jobs.job import JobRecord
from opensana.serve.jobs.ledger import Ledger
from opensana.serve.jobs.limits import Limits, Rates
from opensana.serve.jobs.order import InputName, Order
from opensana.serve.jobs.pace import Pace
from opensana.serve.jobs.room import Room
from opensana.serve.jobs.store import Store
from opensana.serve.metrics import Metrics
from opensana.serve.painter import Painter
from opensana.serve.painting.worker import Worker
from opensana.serve.replicas.dispatcher import Dispatcher, Replicas


class Service:
    """A painter, or replicas that have one each, with their queue and their store.

    `warm_ups` are drawn before it is ready, unless by replicas: each draws its own.
    """

    def __init__(
        self,
        painter: Painter[Any] | Replicas,
        store: Store,
        *,
        limits: Limits | None = None,
        batch: int = 8,
        name: str = "job",
        warm_ups: Sequence[Order] = (),
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self._painter, self._store = painter, store
        self._batch, self._name = batch, name
        self._board = Board(Pace())
        self._ledger = ledger = Ledger(self._board, store, self.metrics)
        if isinstance(painter, Replicas):
            self._worker = Dispatcher(painter, self._board, ledger)
        else:
            self._worker = Worker(painter, self._board, ledger, batch=batch, warm_ups=warm_ups)
        self._rates = Rates(self.limits.rate)
        self._ended: dict[str, Live] = {}
        self._about = painter.about()
        self._room = Room(self.limits, self._board, self._about["defaults"])
        self.draining = False
        self.auth = False  # `make_app` knows
        self.metrics.depth.set_function(lambda: len(self._board.all()))
        self.metrics.painters.set_function(lambda: self._worker.painters)

    def start(self) -> None:
        """Begin to draw, first the jobs that a server before this one left unfinished."""
        self.prune()
        for live in unfinished(self._store, self._painter):
            self._add(live)
        self._worker.start()

    @property
    def model(self) -> str:
        """Its name."""
        return self._about["model"]

    @property
    def state(self) -> str:
        """loading, warming_up, ready, failed or draining; only one that is ready takes load."""
        if self.draining:
            return "draining"
        return self._worker.state if self._worker.alive else "loading"

    def drain(self) -> None:
        """Take nothing new and begin nothing; jobs at work go on."""
        self.draining = True
        self._worker.drain()
        for live in self._board.all():
            if live.record.state == "queued":
                live.log.close()

    async def drained(self, grace: float) -> bool:
        """Whether all jobs at work were done within so many seconds; then nothing is drawn."""
        done = await asyncio.to_thread(self._worker.join, grace)
        if not done:
            self._worker.stop()
        for live in self._board.all():
            live.log.close()
        return done

    def close(self) -> None:
        self._worker.stop()
        self._worker.join()
        self._store.close()

    def prune(self) -> int:
        """Delete what is too old or too much."""
        before = time.time() - self.limits.keep_seconds
        return self._store.prune(before=before, most_bytes=self.limits.keep_bytes)

    async def refresh(self) -> None:
        """List anew what requests may name."""
        await asyncio.to_thread(self._painter.refresh)
        self._about = self._painter.about()

    def capabilities(self) -> dict[str, Any]:
        """What may be asked for here."""
        about = dict(self._about)
        return {
            "object": "capabilities",
            "version": __version__,
            "models": [self.model],
            **about,
            "auth": self.auth,
            "limits": self.limits.view(),
            "queue": self._room.view() | {"batch": self._batch, "painters": self._worker.painters},
            "keep": {"seconds": self.limits.keep_seconds, "bytes": self.limits.keep_bytes},
        }

    async def submit(
        self,
        order: Order,
        caller: Key,
        *,
        kind: str = "native",
        idempotency_key: str | None = None,
        job_id: str | None = None,
    ) -> JobRecord:
        """A job of an order: checked, decided, on disk and in the queue.

        ApiError 400 for what cannot be drawn, 409 for an idempotency key of another order, 429 and
        503 with Retry-After where there is no room.
        """
        if idempotency_key is not None:
            known = self._store.by_idempotency(caller.name, idempotency_key)
            if known is not None:
                if known[1] != order.digest:
                    message = "this Idempotency-Key was used for another request"
                    raise ApiError(409, message, code="idempotency_conflict")
                return self.job(known[0].id, caller)
        try:
            self._rates.take(caller.name)
            self._check_open()
            self.limits.check_request(order.request)
            with self._room.held(order.request, caller.name):
                plan = await asyncio.to_thread(self._painter.plan, order)
            self.limits.check_plan(plan)
            self._room.check(plan.total_work, caller.name)
        except ApiError as error:
            self.metrics.rejected.labels(error.code).inc()
            raise
        id = job_id or f"{self._name}_{secrets.token_hex(12)}"
        record = new_record(id, order, plan, key=caller.name, kind=kind)
        self._store.insert(record, order, idempotency_key)
        live = Live(record, replace(plan, details=None))
        self._add(live)
        return self._board.now(live)

    def _add(self, live: Live) -> None:
        self._ended[live.record.id] = live
        while len(self._ended) > 1000:
            oldest = next(iter(self._ended))
            if not self._ended[oldest].record.is_finished:
                break
            del self._ended[oldest]
        self._board.add(live)

    def _check_open(self) -> None:
        if self.draining or not self._worker.alive:
            raise ApiError(503, "the server is about to stop", code="draining", retry_after=5)
        if not self._worker.painters:
            message = "no replica is ready; wait until one is"
            raise ApiError(503, message, code="not_ready", retry_after=5)

    def job(self, id: str, caller: Key) -> JobRecord:
        """A job of the caller; ApiError 404."""
        live = self._board.get(id)
        record = self._store.get(id) if live is None else self._board.now(live)
        if record is None or record.key != caller.name:
            raise ApiError(404, "there is no such job, or it was too old", code="no_such_job")
        return record

    def jobs(self, caller: Key, *, limit: int = 50, before: str | None = None) -> list[JobRecord]:
        """The caller's jobs, newest first."""
        found = self._store.of_key(caller.name, limit, before)
        lives = ((record, self._board.get(record.id)) for record in found)
        return [record if live is None else self._board.now(live) for record, live in lives]

    def cancel(self, id: str, caller: Key) -> JobRecord:
        """End a job, at work before its next step; one that is finished stays as it is."""
        self.job(id, caller)
        self._end(id)
        return self.job(id, caller)

    def _end(self, id: str) -> None:
        """At once where it waits, however long the step at work takes."""
        live = self._board.cancel(id)
        if live is not None:
            self._ledger.ended(live, "cancelled")

    def delete(self, id: str, caller: Key) -> None:
        """Forget a finished job and its pictures."""
        if not self.job(id, caller).is_finished:
            raise ApiError(409, "the job is not finished; cancel it first", code="not_finished")
        self._ended.pop(id, None)
        self._store.delete(id)

    async def events(
        self, id: str, caller: Key, *, after: str | None = None, previews: bool = False
    ) -> AsyncGenerator[Event, None]:
        """What happens to a job, first all of it as it is now unless `after` is known."""
        record, live = self.job(id, caller), self._ended.get(id)
        if live is None:
            state = record.state
            assert state in LAST
            error = {"error": record.error.view()} if record.error else {}
            yield Event("0-1", "job", {"type": "job", "job": record.view()})
            yield Event("0-2", state, {"type": state, "job": record.view()} | error)
            return
        log = live.log
        if not log.knows(after):
            after = None if record.is_finished else log.last_id
            yield Event(log.last_id, "job", {"type": "job", "job": record.view()})
            if record.is_finished:
                yield log.since(None)[-1]
                return
        async for event in log.follow(after, previews=previews):
            yield event

    async def result(self, id: str, caller: Key) -> JobRecord:
        """The job once it is finished, or as it is when the server stops."""
        async for _ in self.events(id, caller):
            pass
        return self.job(id, caller)

    async def run(
        self, order: Order, caller: Key, http: fastapi.Request, *, kind: str
    ) -> JobRecord:
        """Submit and wait; a client that leaves cancels its job, and what fails is raised."""
        record = await self.submit(order, caller, kind=kind)
        done = await self.wait(record.id, caller, http)
        if done.state == "cancelled":
            raise ApiError(503, "the job was cancelled", code="cancelled")
        return done

    async def wait(self, id: str, caller: Key, http: fastapi.Request) -> JobRecord:
        """The job, completed or cancelled; what fails is raised, and whoever leaves cancels."""
        waiting = asyncio.create_task(self.result(id, caller))
        leaving = asyncio.create_task(_left(http))
        try:
            await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                self._end(id)
                raise ApiError(CLIENT_LEFT, "the client left", code="client_left")
            done = await waiting
        except asyncio.CancelledError:
            self._end(id)
            raise
        finally:
            leaving.cancel()
            waiting.cancel()
        if not done.is_finished:
            self._end(id)  # nobody would come for it
            raise ApiError(503, "the server is about to stop", code="draining", retry_after=5)
        if done.error is not None:
            raise ApiError(500, done.error.message, code=done.error.code)
        return done

    def picture(self, id: str, index: int, caller: Key) -> bytes:
        """A PNG of a job; ApiError 404 until it is drawn."""
        record = self.job(id, caller)
        done = 0 <= index < len(record.images) and record.images[index].done
        data = self._store.picture(id, index) if done else None
        if data is None:
            raise ApiError(404, "there is no such picture (yet)", code="no_such_picture")
        return data

    def input(self, id: str, name: InputName, caller: Key) -> bytes:
        """A picture that came with a job; ApiError 404."""
        data = self._store.input(id, name) if name in self.job(id, caller).inputs else None
        if data is None:
            raise ApiError(404, f"the job came without {name}", code="no_such_picture")
        return data


async def _left(http: fastapi.Request) -> None:
    """Until the client leaves, once its body is read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass

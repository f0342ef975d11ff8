"""Ledger: what happens to a job, noted in its record, its events, the store and the figures."""

import time
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

from opensana.errors import NumericsError, OpensanaError, OutOfMemory
from opensana.serve.jobs.board import Board, Live
from opensana.serve.jobs.events import Last
from opensana.serve.jobs.job import JobError
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.store import Store
from opensana.serve.logs import log
from opensana.serve.metrics import Metrics


class Ledger:
    """For one thread, the one that draws or has others draw; another ends what it has not begun."""

    def __init__(self, board: Board, store: Store, metrics: Metrics) -> None:
        self._board, self._store, self._metrics = board, store, metrics

    def order(self, live: Live) -> Order:
        """What a job asks for."""
        return self._store.order(live.record.id)

    def begun(self, live: Live) -> None:
        if live.record.state == "queued":
            live.record = replace(live.record, state="running", started=time.time())
            self._store.update(live.record)
            live.log.add("started")
            self._metrics.waited(time.time() - live.record.created)

    def turned(self, lane: Hashable, seconds: float, work: int, pictures: int) -> None:
        """A batch took a step; `work` is of all its pictures."""
        self._board.pace.stepped(lane, seconds, work)
        self._metrics.step(seconds, pictures)

    def stepped(
        self, live: Live, index: int, step: int, preview: Callable[[], dict[str, Any] | None]
    ) -> None:
        """A picture took that step; `preview`, called if wanted, makes the data of an event."""
        live.record = live.record.with_image(index, step=step)
        if not live.log.read:
            return
        now, steps = self._board.now(live), live.plan.steps
        eta, progress = now.eta and round(now.eta, 2), round(now.progress, 4)
        fields = {"step": step, "steps": steps, "progress": progress, "eta_s": eta}
        live.log.add("step", image=index, **fields)
        if live.log.previews_wanted and step < steps:
            data = preview()
            if data is not None:
                live.log.add("preview", **data)

    def drawn(self, live: Live, index: int, png: bytes) -> None:
        self._store.write_picture(live.record.id, index, png)
        del live.canvases[index]
        live.record = live.record.with_image(index, done=True)
        self._store.update(live.record)
        self._metrics.picture()
        view = live.record.image_view(live.record.images[index])
        names = ("seed", "url", "width", "height")
        live.log.add("image", image=index, **{name: view[name] for name in names})

    def noted(self, live: Live, message: str) -> None:
        if message not in live.record.notes:
            live.record = replace(live.record, notes=(*live.record.notes, message))
            live.log.add("note", message=message)

    def lost(self, live: Live, index: int) -> None:
        """A picture's replica died; it is begun again from its seed."""
        live.record = live.record.with_image(index, step=0)
        self.noted(live, f"the replica that drew picture {index + 1} died; it is drawn again")

    def failed(self, live: Live, error: JobError) -> None:
        if not live.record.is_finished:
            self._metrics.failed(error.code)
            live.record = replace(live.record, error=error)
            self.ended(live, "failed")

    def ended(self, live: Live, state: Last) -> None:
        live.record = replace(live.record, state=state, finished=time.time())
        live.canvases.clear()
        self._store.update(live.record)
        self._board.remove(live)
        record = live.record
        seconds = (record.finished or 0) - record.created
        log("job", id=record.id, key=record.key, kind=record.kind, state=state,
            images=len(record.images), width=live.plan.size[0], height=live.plan.size[1],
            steps=live.plan.steps, seconds=round(seconds, 3))  # fmt: skip
        self._metrics.ended(record, live.plan)
        error = {"error": record.error.view()} if record.error else {}
        live.log.add(state, job=record.view(), **error)


def job_error(error: Exception) -> JobError:
    """What clients are told of what went wrong."""
    if isinstance(error, NumericsError):
        return JobError(str(error), "nan")
    if isinstance(error, OutOfMemory):
        return JobError(str(error), "out_of_memory")
    if isinstance(error, OpensanaError):
        return JobError(str(error), "invalid")
    return JobError(
        f"drawing failed ({type(error).__name__}); the server's log says more", "failed"
    )

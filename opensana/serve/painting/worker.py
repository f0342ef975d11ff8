"""Worker: one painter, one thread, one loop.

Between two steps it drops what was cancelled, chooses who takes the next step, begins those that
have not begun, and ends those that are done. Nothing else touches the painter.
"""

import threading
import time
from collections.abc import Hashable, Sequence
from typing import Any, Literal

from opensana.drawing.picture import Picture
from opensana.errors import OutOfMemory
from opensana.serve.jobs.board import Board, Live
from opensana.serve.jobs.events import preview_event
from opensana.serve.jobs.ledger import Ledger, job_error
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.relay import Relay
from opensana.serve.logs import log, log_failure
from opensana.serve.painter import Canvas, Painter
from opensana.serve.painting.warm_up import draw_first
from opensana.workers.threads import in_order

Chosen = tuple[Live, int]
ENCODERS = 4
"""Threads that encode the pictures of a batch."""
State = Literal["warming_up", "ready", "failed"]
"""failed: the warm-up could not be drawn, and nothing since."""


class Worker:
    """Draws what is on the board until it is told to stop."""

    def __init__(
        self,
        painter: Painter[Any],
        board: Board,
        ledger: Ledger | Relay,
        *,
        batch: int,
        warm_ups: Sequence[Order] = (),
    ) -> None:
        self._painter, self._board, self._ledger = painter, board, ledger
        self._batch, self._warm_ups = batch, warm_ups
        self.state: State = "warming_up" if warm_ups else "ready"
        self._fits: dict[Hashable, int] = {}  # lanes in which memory was short
        self._turn: tuple[Hashable, float] = (None, 0.0)  # a lane, and seconds that it goes on for
        self._draining = self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Begin no more jobs; the thread ends once those begun are done."""
        self._draining = True
        self._board.tell()

    def stop(self) -> None:
        """End after the step at work; unfinished jobs stay as they are in the store."""
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
        """How many are ready."""
        return int(self.alive)

    def _loop(self) -> None:
        while not self._stopped:
            for live in self._board.all():
                if live.cancelled and live.taken:
                    self._ledger.ended(live, "cancelled")
            lane = self._turn[0] if self._turn[1] > 0 else None
            batch = self._board.choose(self._batch, begun_only=self._draining, lane=lane)
            if not batch and self.state == "warming_up" and not self._draining:
                self._warm_up()
                continue
            if not batch:
                with self._board.changed:
                    if self._draining:
                        return
                    if not self._board.pending() and not self._stopped:
                        self._board.changed.wait()
                continue
            most = self._fits.get(batch[0][0].plan.lane, self._batch)
            self._advance(batch[:most])

    def _warm_up(self) -> None:
        """Draw while nobody waits; a job that comes goes first, and its picture does as well."""
        start = time.monotonic()
        try:
            whole = draw_first(self._painter, self._warm_ups, self._board.pace, self._is_wanted)
        except Exception as error:
            self.state = "failed"
            log_failure(error)
            return
        if whole:
            self.state = "ready"
            log("ready", warm_up=round(time.monotonic() - start, 3))

    def _is_wanted(self) -> bool:
        with self._board.changed:
            return self._stopped or self._draining or self._board.pending()

    def _advance(self, batch: Sequence[Chosen]) -> None:
        """One step of each picture, and what comes before its first and after its last."""
        start = time.monotonic()
        batch = self._begun(batch)
        stepped = time.monotonic()
        batch = self._stepped(batch)
        lane_seconds = time.monotonic() - stepped
        self._turn = self._turn[0], self._turn[1] - lane_seconds
        if batch:
            plan = batch[0][0].plan
            works = sum(live.plan.work for live, _ in batch)
            self._ledger.turned(plan.lane, lane_seconds, works, len(batch))
        done = [
            (live, index) for live, index in batch if live.canvases[index].step >= live.plan.steps
        ]
        ending = time.monotonic()
        self._finish(done)
        now = time.monotonic()
        if done:
            self._board.pace.ended((now - ending) / len(done))
        for live, _ in batch:
            live.since = now
            self._board.schedule.charge(live.record.key, (now - start) / len(batch))

    def _begun(self, batch: Sequence[Chosen]) -> list[Chosen]:
        """The batch with a canvas for each, without those that failed or were cancelled."""
        batch = [(live, index) for live, index in batch if self._board.take(live)]
        new = [(live, index) for live, index in batch if index not in live.canvases]
        for live in dict.fromkeys(live for live, _ in new):
            if live.begun is None:
                self._attempt([(live, 0)], lambda one: self._plan(one[0][0]))
        batch = [(live, index) for live, index in batch if live.begun is not None]
        self._attempt(batch, self._ready)
        batch = [(live, index) for live, index in batch if not live.record.is_finished]
        self._attempt([one for one in batch if one in new], self._open)
        return [(live, index) for live, index in batch if index in live.canvases]

    def _plan(self, live: Live) -> None:
        live.begun = self._painter.plan(self._ledger.order(live))
        self._ledger.begun(live)

    def _ready(self, batch: Sequence[Chosen]) -> None:
        """The network of the batch's lane, which then goes on for as long as that took."""
        start, plan = time.monotonic(), batch[0][0].begun
        assert plan is not None
        self._painter.ready(plan)
        lane, left = self._turn
        took = time.monotonic() - start
        self._turn = plan.lane, max(took, left if lane == plan.lane else 0.0)

    def _open(self, new: Sequence[Chosen]) -> None:
        wanted = [(live.begun, index) for live, index in new if live.begun is not None]
        for (live, index), canvas in zip(new, self._painter.open(wanted), strict=True):
            live.canvases[index] = canvas

    def _stepped(self, batch: Sequence[Chosen]) -> list[Chosen]:
        """Those that took their step."""
        good: list[Chosen] = []

        def step(some: Sequence[Chosen]) -> None:
            outcomes = self._painter.step([live.canvases[index] for live, index in some])
            for (live, index), error in zip(some, outcomes, strict=True):
                if error is None:
                    good.append((live, index))
                    self._tell_step(live, index, live.canvases[index])
                else:
                    self._fail(live, error)

        self._attempt(batch, step)
        return [(live, index) for live, index in good if index in live.canvases]

    def _tell_step(self, live: Live, index: int, canvas: Canvas) -> None:
        def preview() -> dict[str, Any] | None:
            image = self._painter.preview(canvas)
            return image and preview_event(image, index, canvas.step, live.plan.steps)

        self._ledger.stepped(live, index, canvas.step, preview)

    def _finish(self, done: Sequence[Chosen]) -> None:
        def finish(some: Sequence[Chosen]) -> None:
            # Tried again after an error, some may have been kept before it.
            some = [(live, index) for live, index in some if index in live.canvases]
            if not some:
                return
            pictures = self._painter.finish([live.canvases[index] for live, index in some])
            encoded = in_order(Picture.png, pictures, workers=min(ENCODERS, len(pictures)))
            for (live, index), png in zip(some, encoded, strict=True):
                self._ledger.drawn(live, index, png)
                if self.state != "ready":
                    self.state = "ready"
                    log("ready")

        self._attempt(done, finish)
        for live in dict.fromkeys(live for live, _ in done):
            if not live.open_images and not live.record.is_finished:
                self._ledger.ended(live, "completed")

    def _attempt(self, some: Sequence[Chosen], act) -> None:
        """Do it with all at once, else with fewer, else fail those it cannot be done with."""
        if not some:
            return
        try:
            act(some)
        except Exception as error:
            if len(some) == 1:
                self._fail(some[0][0], error)
                return
            half = len(some) // 2
            if isinstance(error, OutOfMemory):
                self._fits[some[0][0].plan.lane] = half
                for live in dict.fromkeys(live for live, _ in some):
                    self._ledger.noted(
                        live, f"memory was short: {half} at once instead of {len(some)}"
                    )
            else:
                log_failure(error, *_texts(some))
            left = [(live, index) for live, index in some if not live.record.is_finished]
            self._attempt(left[:half], act)
            self._attempt([one for one in left[half:] if not one[0].record.is_finished], act)

    def _fail(self, live: Live, error: Exception) -> None:
        if not live.record.is_finished:
            log_failure(error, *_texts([(live, 0)]))
            self._ledger.failed(live, job_error(error))


def _texts(some: Sequence[Chosen]) -> set[str]:
    """What the log shall not tell."""
    requests = [live.record.request for live, _ in some]
    return {text for one in requests for text in (one.prompt, one.negative_prompt)}

"""Relay: the ledger of a replica. What its worker did goes to the head as messages.

A message is a name, that of the method of `Ledger` to call there, and plain values.
"""

import asyncio
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from opensana.serve.jobs.board import Board, Live
from opensana.serve.jobs.events import Last
from opensana.serve.jobs.job import JobError
from opensana.serve.jobs.order import Order

Message = tuple[str, dict[str, Any]]
LAST = ("drawn", "failed")
"""What ends a picture; after a cancel nothing is sent."""


@dataclass(eq=False)
class Mail:
    """Messages about one picture, for the event loop that it was made in."""

    order: Order
    lane: Hashable
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _queue: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)

    def put(self, name: str, **values: Any) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # a loop that is closed has no reader any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (name, values))

    async def get(self) -> list[Message]:
        """All that came, one at least."""
        found = [await self._queue.get()]
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        return found


class Relay:
    """For the worker's thread, but for `open`, and `ended` of what it has not begun."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._open: dict[Live, Mail] = {}

    def open(self, live: Live, order: Order) -> Mail:
        mail = self._open[live] = Mail(order, live.plan.lane)
        return mail

    def order(self, live: Live) -> Order:
        return self._open[live].order

    def begun(self, live: Live) -> None:
        live.record = replace(live.record, state="running")
        self._send(live, "begun")

    def turned(self, lane: Hashable, seconds: float, work: int, pictures: int) -> None:
        """Told once, among what is told of a picture of that lane."""
        self._board.pace.stepped(lane, seconds, work)
        for mail in list(self._open.values()):
            if mail.lane == lane:
                mail.put("turned", seconds=seconds, work=work, pictures=pictures)
                return

    def stepped(
        self, live: Live, index: int, step: int, preview: Callable[[], dict[str, Any] | None]
    ) -> None:
        """Every preview is made: whoever wants one may come after the picture was sent here."""
        live.record = live.record.with_image(index, step=step)
        data = preview() if step < live.plan.steps else None
        self._send(live, "stepped", step=step, preview=data)

    def drawn(self, live: Live, index: int, png: bytes) -> None:
        del live.canvases[index]
        live.record = live.record.with_image(index, done=True)
        self._send(live, "drawn", png=png)

    def noted(self, live: Live, message: str) -> None:
        self._send(live, "noted", message=message)

    def failed(self, live: Live, error: JobError) -> None:
        self._send(live, "failed", message=error.message, code=error.code)
        self.ended(live, "failed")

    def ended(self, live: Live, state: Last) -> None:
        live.record = replace(live.record, state=state)
        live.canvases.clear()
        self._open.pop(live, None)
        self._board.remove(live)

    def _send(self, live: Live, name: str, **values: Any) -> None:
        mail = self._open.pop(live, None) if name in LAST else self._open.get(live)
        if mail is not None:
            mail.put(name, **values)

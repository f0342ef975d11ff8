"""Replica: a painter with a worker of its own, which draws pictures for a head elsewhere.

It is the same worker as in a server alone: pictures of one shape take their steps together, and
join and leave between two steps. The head has the jobs; nothing is kept here.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from opensana.errors import OpensanaError
from opensana.serve.jobs.beginnings import new_record
from opensana.serve.jobs.board import Board, Live
from opensana.serve.jobs.ledger import job_error
from opensana.serve.jobs.order import InputName, read_order
from opensana.serve.jobs.pace import Pace
from opensana.serve.jobs.relay import LAST, Message, Relay
from opensana.serve.painter import Painter, Plan
from opensana.serve.painting.warm_up import warm_ups
from opensana.serve.painting.worker import Worker


@dataclass(frozen=True)
class Task:
    """One picture of a job."""

    id: str
    """Unlike that of any other task, also of one for the same picture."""
    key: str
    """The name of the key, for the shares of the replica's time."""
    index: int
    order: str
    """`Order.text`, with everything decided."""
    pictures: Mapping[InputName, bytes]


class Replica:
    """For one event loop, beside the worker's thread; it has drawn once it is made."""

    def __init__(self, open_painter: Callable[[], Painter[Any]], batch: int) -> None:
        self._painter, self._board = open_painter(), Board(Pace())
        self._relay = Relay(self._board)
        first = warm_ups(self._painter.about())
        self._worker = Worker(self._painter, self._board, self._relay, batch=batch, warm_ups=first)
        self._worker.start()
        while self._worker.state == "warming_up":
            time.sleep(0.01)
        if self._worker.state == "failed":
            raise OpensanaError("the model cannot draw; Ray's log of the replica says why")

    async def check_health(self) -> None:
        """RuntimeError once nothing is drawn any more: Ray then starts another replica."""
        if not self._worker.alive:
            raise RuntimeError("the worker's thread has ended")

    async def about(self) -> dict[str, Any]:
        """What `Painter.about` says."""
        return self._painter.about()

    async def plan(self, order: str, pictures: Mapping[InputName, bytes]) -> Plan | OpensanaError:
        """The plan of an order, as the head may use it; or why it cannot be drawn."""
        try:
            plan = await asyncio.to_thread(self._painter.plan, read_order(order, pictures))
        except OpensanaError as error:
            return error
        return replace(plan, lane=plan.size, details=None)

    async def draw(self, task: Task) -> AsyncGenerator[list[Message], None]:
        """What happens to a picture, until it is drawn or has failed; ending it cancels."""
        order = read_order(task.order, task.pictures)
        try:
            plan = await asyncio.to_thread(self._painter.plan, order)
        except Exception as error:
            told = job_error(error)
            yield [("failed", {"message": told.message, "code": told.code})]
            return
        record = new_record(task.id, order, plan, key=task.key, kind="replica")
        images = (replace(one, done=one.index != task.index) for one in record.images)
        live = Live(replace(record, images=tuple(images)), replace(plan, details=None))
        mail = self._relay.open(live, order)
        self._board.add(live)
        try:
            last = False
            while not last:
                messages = await mail.get()
                last = messages[-1][0] in LAST
                yield messages
        finally:
            if self._board.cancel(task.id) is not None:
                self._relay.ended(live, "cancelled")

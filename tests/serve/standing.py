"""Replicas in this process, in place of those on Ray: they can be killed, and are replaced."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from opensana.errors import OpensanaError
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.relay import Message
from opensana.serve.painter import Plan
from opensana.serve.replicas.dispatcher import ReplicaLost, Replicas, ReplicasFull
from opensana.serve.replicas.replica import Replica, Task
from tests.serve.gradient import Gradient


class Standing(Replicas):
    """`make` is called for each, and for the one that comes in the place of one that was killed."""

    def __init__(
        self, count: int = 2, make: Callable[[], Gradient] = Gradient, batch: int = 2
    ) -> None:
        self._make, self._batch, self.room = make, batch, 2 * batch
        self.painters: list[Gradient] = []
        """All that there were."""
        self.alive: dict[int, Replica] = {}
        self._busy = Counter[int]()
        for _ in range(count):
            self.add()

    def add(self) -> None:
        painter = self._make()
        self.alive[len(self.painters)] = Replica(lambda: painter, self._batch)
        self.painters.append(painter)

    def kill(self, number: int) -> None:
        """Another takes its place at once: there is always one."""
        self.add()
        del self.alive[number]

    @property
    def count(self) -> int:
        return len(self.alive)

    def about(self) -> dict[str, Any]:
        return self.painters[0].about()

    def refresh(self) -> None:
        for painter in self.painters:
            painter.refresh()

    def plan(self, order: Order) -> Plan:
        found = asyncio.run(next(iter(self.alive.values())).plan(order.text, order.pictures))
        if isinstance(found, OpensanaError):
            raise found
        return found

    async def draw(self, task: Task) -> AsyncGenerator[list[Message], None]:
        number = min(self.alive, key=lambda one: self._busy[one])
        if self._busy[number] >= self.room:
            raise ReplicasFull
        self._busy[number] += 1
        try:
            async with aclosing(self.alive[number].draw(task)) as stream:
                while (messages := await self._next(number, stream)) is not None:
                    yield messages
        finally:
            self._busy[number] -= 1

    async def _next(
        self, number: int, stream: AsyncGenerator[list[Message], None]
    ) -> list[Message] | None:
        """What comes next from a replica, while it lives."""
        coming = asyncio.ensure_future(anext(stream, None))
        try:
            while not coming.done():
                await asyncio.wait({coming}, timeout=0.01)
                if number not in self.alive:  # nor is anything heard that it sent too late
                    raise ReplicaLost("killed")
            return coming.result()
        finally:
            coming.cancel()
            await asyncio.wait({coming})

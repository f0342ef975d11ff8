"""Room: whether the queue takes one more job, and when to come again where it does not.

What a job takes is known once it is planned, which costs time. So it is guessed first, and the
guess is held while the job is planned; else a crowd would be planned for nothing.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opensana.request import Request
from opensana.serve.errors import ApiError
from opensana.serve.jobs.board import Board
from opensana.serve.jobs.limits import Limits


class Room:
    """In the queue; one that is empty takes anything. `defaults` are those of the capabilities."""

    def __init__(self, limits: Limits, board: Board, defaults: Mapping[str, Any]) -> None:
        self._limits, self._board, self._defaults = limits, board, defaults
        self._held = Counter[str]()

    @contextmanager
    def held(self, request: Request, key: str) -> Iterator[None]:
        """As `check`, by a guess that counts as waiting meanwhile."""
        work = self._guess(request)
        self.check(work, key)
        self._held[key] += work
        try:
            yield
        finally:
            self._held[key] -= work
            self._held += Counter()  # forgets keys that hold nothing

    def check(self, work: int, key: str) -> None:
        """ApiError 429 or 503 with Retry-After where so much work of a key has no room."""
        limits = self._limits
        own = self._board.work(key) + self._held[key]
        all = self._board.work() + self._held.total()
        if limits.queue_of_key is not None and own and own + work > limits.queue_of_key:
            wait = self._board.wait(own + work - limits.queue_of_key)
            message = "this key has as much waiting as it may; wait until some is drawn"
            raise ApiError(429, message, code="queue_full_for_key", retry_after=wait)
        if all and all + work > limits.queue:
            wait = self._board.wait(all + work - limits.queue)
            message = "the queue is full; wait until some is drawn"
            raise ApiError(503, message, code="queue_full", retry_after=wait)

    def _guess(self, request: Request) -> int:
        width, height, steps = (
            getattr(request, name) or self._defaults[name] for name in ("width", "height", "steps")
        )
        return width * height * steps * request.images

    def view(self) -> dict[str, Any]:
        """Its part of the capabilities."""
        return {
            "size_pixel_steps": self._limits.queue,
            "waiting_pixel_steps": self._board.work(),
            "jobs": len(self._board.all()),
        }

"""Room: whether the queue takes one more job, and when to come again where it does not."""

from typing import Any

from opensana.serve.board import Board
from opensana.serve.errors import ApiError
from opensana.serve.limits import Limits


class Room:
    """In the queue; one that is empty takes anything."""

    def __init__(self, limits: Limits, board: Board) -> None:
        self._limits, self._board = limits, board

    def check(self, work: int, key: str) -> None:
        """ApiError 429 or 503 with Retry-After where so much work of a key has no room."""
        limits = self._limits
        own, all = self._board.work(key), self._board.work()
        if limits.queue_of_key is not None and own and own + work > limits.queue_of_key:
            wait = self._board.wait(own + work - limits.queue_of_key)
            message = "this key has as much waiting as it may; wait until some is drawn"
            raise ApiError(429, message, code="queue_full_for_key", retry_after=wait)
        if all and all + work > limits.queue:
            wait = self._board.wait(all + work - limits.queue)
            message = "the queue is full; wait until some is drawn"
            raise ApiError(503, message, code="queue_full", retry_after=wait)

    def view(self) -> dict[str, Any]:
        """Its part of the capabilities."""
        return {
            "size_pixel_steps": self._limits.queue,
            "waiting_pixel_steps": self._board.work(),
            "jobs": len(self._board.all()),
        }

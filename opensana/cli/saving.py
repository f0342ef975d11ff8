"""Pictures become files: on an accelerator while others are drawn, on a CPU at once.

A GPU draws a picture faster than it is encoded: threads encode it, and each is written in turn. A
CPU would gain nothing, and a picture would wait for the next one's first step.
"""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from opensana.drawing.picture import Picture

THREADS = 4
MOST_WAITING = 16
"""Pictures that wait to be written; then drawing waits."""


class Saving:
    """The pictures that are drawn and not written yet.

    All that were drawn are written when the block ends, also by an error of another kind or Ctrl-C.
    Nothing is written behind a picture that could not be.
    """

    def __init__(
        self, write: "Callable[[Picture, bytes], None]", *, metadata: bool, at_once: bool = False
    ) -> None:
        """`write` gets each picture and its PNG, in the order drawn, in the caller's thread."""
        self._write, self._metadata, self._at_once = write, metadata, at_once
        self._pool = ThreadPoolExecutor(THREADS)
        self._waiting: deque[tuple[Picture, Future[bytes]]] = deque()
        self._failed = False

    def add(self, picture: "Picture") -> None:
        """Begin to encode a picture, or write it."""
        if self._at_once:
            self._write(picture, picture.png(metadata=self._metadata))
            return
        encoded = self._pool.submit(picture.png, metadata=self._metadata)
        self._waiting.append((picture, encoded))
        if len(self._waiting) > MOST_WAITING:
            self._write_next()

    def write_encoded(self) -> None:
        """Write those that are encoded, up to the first that is not."""
        while self._waiting and self._waiting[0][1].done():
            self._write_next()

    def _write_next(self) -> None:
        picture, encoded = self._waiting.popleft()
        self._failed = True
        self._write(picture, encoded.result())
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self._waiting and not self._failed:
                self._write_next()
        finally:
            self._pool.shutdown(cancel_futures=True)

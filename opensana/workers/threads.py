"""Work ahead in threads: results in the order of the items, or as completed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_order(
    work: Callable[[Item], Answer], items: Iterable[Item], *, workers: int, ahead: int | None = None
) -> Iterator[Answer]:
    """`work(item)` of each item, in order, computed ahead of the caller.

    At most `ahead` results wait; the default is twice `workers`.
    """
    most = 2 * workers if ahead is None else ahead
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Answer]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def in_flight(
    work: Callable[[Item], Answer], items: Iterable[Item], *, at_once: int
) -> Iterator[Answer]:
    """`work(item)` of each item, as completed, with at most `at_once` in flight.

    Errors of `work` are raised here. The threads are daemons: Ctrl-C does not wait for them.
    """
    waiting: SimpleQueue[tuple[Item] | None] = SimpleQueue()
    done: SimpleQueue[tuple[Answer] | BaseException] = SimpleQueue()

    def serve() -> None:
        while (item := waiting.get()) is not None:
            try:
                done.put((work(item[0]),))
            except BaseException as error:
                done.put(error)

    for _ in range(at_once):
        Thread(target=serve, daemon=True).start()
    running = 0
    try:
        for item in items:
            waiting.put((item,))
            running += 1
            if running == at_once:
                yield _taken(done)
                running -= 1
        while running:
            yield _taken(done)
            running -= 1
    finally:
        for _ in range(at_once):
            waiting.put(None)


def _taken(done: "SimpleQueue[tuple[Answer] | BaseException]") -> Answer:
    answer = done.get()
    if isinstance(answer, BaseException):
        raise answer
    return answer[0]

"""One step ahead: a single thread prepares the next batch while this one is trained on."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")


def ahead(prepare: Callable[[int], Batch], start: int, stop: int) -> Iterator[Batch]:
    """`prepare(step)` for each step of [start, stop), in order; a pure function stays exact."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(prepare, start) if start < stop else None
        for step in range(start, stop):
            assert waiting is not None
            batch = waiting.result()
            waiting = pool.submit(prepare, step + 1) if step + 1 < stop else None
            yield batch

"""Progress of long work, on stderr."""

import sys
import time
from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called with the number of pictures done and the total."""


def progress(what: str) -> Report:
    """A callback that prints the time left to stderr every ten seconds."""
    start = time.monotonic()
    said = [start]

    def report(done: int, total: int) -> None:
        now = time.monotonic()
        if now - said[0] > 10 or done == total:
            said[0] = now
            left = (now - start) / done * (total - done)
            print(f"opensana: {done}/{total} {what}, {left:.0f} s left", file=sys.stderr)

    return report

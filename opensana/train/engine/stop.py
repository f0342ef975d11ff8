"""Stopping a training by signal: the first finishes the step and saves, the second ends at once.

Ctrl-C in a terminal reaches a process of torchrun twice, from the terminal and from torchrun: what
follows within a second is the same wish.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

SAME_WISH = 1.0  # seconds


class StopRequest:
    """Context in which SIGTERM and SIGINT set `.wanted` instead of ending the process."""

    def __init__(self) -> None:
        self.wanted = False
        self._asked = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.wanted and time.monotonic() - self._asked < SAME_WISH:
            return
        if self.wanted:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.wanted, self._asked = True, time.monotonic()
        name = signal.Signals(number).name
        print(f"{name}: finishing the step, then saving (again: stop at once)", file=sys.stderr)

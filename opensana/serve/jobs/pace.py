"""Pace: how long steps, beginnings and ends take here, measured; every forecast is made of it."""

import threading
from collections.abc import Hashable

WEIGHT = 0.2  # of the newest measurement
MOST_LANES = 1000  # of which the steps are known: sizes and LoRAs are the users' choice
UNKNOWN = 1e-6  # seconds for a pixel and step, before anything was measured


class Pace:
    """Written by the worker's thread, read from any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[Hashable, float] = {}
        self._rate: float | None = None
        self._ends: float = 0.0
        self.painters = 1
        """How many draw side by side; the measurements are of one."""

    def stepped(self, lane: Hashable, seconds: float, work: int) -> None:
        """A batch took a step; `work` is of all its pictures."""
        with self._lock:
            self._steps[lane] = _mean(self._steps.pop(lane, None), seconds)
            if len(self._steps) > MOST_LANES:
                del self._steps[next(iter(self._steps))]
            self._rate = _mean(self._rate, seconds / work)

    def ended(self, seconds: float) -> None:
        """What came before the first step and after the last of one picture."""
        with self._lock:
            self._ends = _mean(self._ends or None, seconds)

    def step(self, lane: Hashable, work: int) -> float:
        """Seconds of one step in a lane, in whatever company it has there."""
        with self._lock:
            return self._steps.get(lane) or work * (self._rate or UNKNOWN)

    def seconds(self, work: float, pictures: int) -> float:
        """Seconds that so much work takes among other work."""
        with self._lock:
            return work * (self._rate or UNKNOWN) + pictures * self._ends


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)

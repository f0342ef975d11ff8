"""Which pictures take the next step together: fair among keys, short jobs first, none starved.

Between two steps every unfinished picture waits, whether it was begun or not. One of them leads:

1. It is of the key that has been served least. A key that was idle starts at most `CREDIT` seconds
   behind the others: it goes first for that long and then shares equally.
2. Of one key, a job that is due: none of its pictures took a step for `PATIENCE` times as long as
   one takes. So a job of large steps, or of many, once it is begun, gets one part in PATIENCE + 1
   of its key's time, whatever else comes; those not begun follow, the oldest first.
3. Else the job with the least left.

The batch is filled with pictures of the leader's lane by the same order; each that is chosen counts
as served, so that one key's many pictures leave room for another's.

A lane whose network had to be made first, of LoRAs, keeps its turn until its steps took as long as
that. So no more than half of the time is lost where more networks are asked for than are kept.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

PATIENCE = 8.0
CREDIT = 10.0


@dataclass(frozen=True)
class Waiting:
    """A picture between two steps; times are in seconds."""

    job: str
    index: int
    key: str
    lane: Hashable
    left: float
    """What its job still takes."""
    step: float
    """What its next step takes."""
    begun: bool
    """Whether any of its steps was taken."""
    since: float
    """When its job was last served, or came."""


class Schedule:
    """What each key has been given so far."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}

    def choose(
        self, waiting: Iterable[Waiting], now: float, most: int, lane: Hashable = None
    ) -> list[Waiting]:
        """Up to `most` pictures of one lane, the leader first; none if nothing waits.

        The lane is the leader's, or `lane` while it has its turn and any of it waits.
        """
        rest = list(waiting)
        self._keep({one.key for one in rest})
        rest = [one for one in rest if one.lane == lane] or rest
        served, chosen = dict(self._served), list[Waiting]()
        while rest and len(chosen) < most:
            one = min(rest, key=lambda one: _rank(one, served, now))
            if not chosen:
                rest = [other for other in rest if other.lane == one.lane]
            rest.remove(one)
            chosen.append(one)
            served[one.key] += one.step
        return chosen

    def charge(self, key: str, seconds: float) -> None:
        """A key was given that much of the worker's time."""
        self._served[key] = self._served.get(key, 0.0) + seconds

    def served(self, key: str) -> float:
        """Seconds, counted from a start that all keys share."""
        return self._served.get(key, 0.0)

    def _keep(self, keys: set[str]) -> None:
        """Forget the keys that left; those that came start little behind the others."""
        present = [self._served[key] for key in keys if key in self._served]
        least = min(present, default=0.0) - CREDIT
        gone = {key: value for key, value in self._served.items() if key not in keys}
        known = {key: max(self._served.get(key, least), least) for key in keys}
        # What a key was given stays known while it could still matter.
        top = max(present, default=0.0)
        self._served = known | {key: value for key, value in gone.items() if value > top - CREDIT}


def _rank(one: Waiting, served: dict[str, float], now: float) -> tuple:
    late = (now - one.since) / max(one.step, 1e-6)
    if late > PATIENCE:
        return (served[one.key], 0, not one.begun, -late, one.since, one.index)
    return (served[one.key], 1, one.left, one.since, one.index)

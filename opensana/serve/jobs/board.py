"""Board: the unfinished jobs, shared by the worker's thread and those who ask for them."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace

from opensana.serve.jobs.events import EventLog
from opensana.serve.jobs.job import JobRecord
from opensana.serve.jobs.pace import Pace
from opensana.serve.jobs.schedule import Schedule, Waiting
from opensana.serve.painter import Canvas, Plan


@dataclass(eq=False)
class Live:
    """A job that is not finished. The worker's thread alone changes it, but for `cancelled`; one
    that is cancelled before it was `taken` is ended by whoever cancelled it.
    """

    record: JobRecord
    plan: Plan
    """Without the painter's details, which a job has once it is begun."""
    log: EventLog = field(default_factory=EventLog)
    begun: Plan | None = None
    canvases: dict[int, Canvas] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    """When any of its pictures was last served, or it came."""
    cancelled: bool = False
    taken: bool = False
    """The worker has begun with it."""

    @property
    def open_images(self) -> list[int]:
        return [one.index for one in self.record.images if not one.done]

    @property
    def work_left(self) -> int:
        """Pixels x steps."""
        images = self.record.images
        return self.plan.work * sum(one.steps - one.step for one in images if not one.done)


class Board:
    """Safe from any thread."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.schedule = pace, Schedule()
        self.changed = threading.Condition()
        self.on_change: Callable[[], None] = lambda: None
        """Called beside `changed`, by the thread that changed something."""
        self._jobs: dict[str, Live] = {}

    def tell(self) -> None:
        """Wake whoever draws."""
        with self.changed:
            self.changed.notify_all()
        self.on_change()

    def add(self, live: Live) -> None:
        with self.changed:
            self._jobs[live.record.id] = live
            self.tell()

    def remove(self, live: Live) -> None:
        with self.changed:
            self._jobs.pop(live.record.id, None)
            self.tell()

    def take(self, live: Live) -> bool:
        """Whether the worker may begin with a job, which then is its own."""
        with self.changed:
            live.taken = live.taken or not live.cancelled
            return live.taken

    def cancel(self, id: str) -> Live | None:
        """The job, where the caller is to end it; the worker ends its own before its next step."""
        with self.changed:
            live = self._jobs.get(id)
            if live is None or live.cancelled:
                return None
            live.cancelled = True
            self.tell()
            return live if live.record.state == "queued" and not live.taken else None

    def get(self, id: str) -> Live | None:
        with self.changed:
            return self._jobs.get(id)

    def all(self) -> list[Live]:
        with self.changed:
            return list(self._jobs.values())

    def pending(self) -> bool:
        """Whether anything is left to do; for those who hold `changed`."""
        return bool(self._jobs)

    def work(self, key: str | None = None) -> int:
        """Pixels x steps that are left, of one key or of all."""
        jobs = self.all()
        return sum(one.work_left for one in jobs if key in (None, one.record.key))

    def choose(
        self, most: int, *, begun_only: bool, lane: Hashable = None
    ) -> list[tuple[Live, int]]:
        """The pictures that take the next step together, of `lane` if any of it wait."""
        jobs = {one.record.id: one for one in self.all() if not one.cancelled}
        if begun_only:
            jobs = {id: one for id, one in jobs.items() if one.record.state == "running"}
        waiting = [one for live in jobs.values() for one in self.waiting(live)]
        chosen = self.schedule.choose(waiting, time.monotonic(), most, lane)
        return [(jobs[one.job], one.index) for one in chosen]

    def waiting(self, live: Live) -> Iterator[Waiting]:
        """Its pictures that are not drawn."""
        step, left = self.pace.step(live.plan.lane, live.plan.work), self.left(live)
        for index in live.open_images:
            yield Waiting(
                job=live.record.id,
                index=index,
                key=live.record.key,
                lane=live.plan.lane,
                left=left,
                step=step,
                begun=bool(live.canvases),
                since=live.since,
            )

    def wait(self, work: float) -> float:
        """Seconds until so much is done."""
        return self.pace.seconds(work, 0) / self.pace.painters

    def left(self, live: Live) -> float:
        """Seconds of work in a job."""
        return self.pace.seconds(live.work_left, len(live.open_images))

    def now(self, live: Live) -> JobRecord:
        """The record with its place and the seconds to its end."""
        running = [one for one in self.all() if one.record.state == "running"]
        own = self.left(live)
        if live.record.state == "running":
            shared = [min(self.left(one), own) for one in running if one is not live]
            return replace(live.record, eta=own + sum(shared) / self.pace.painters)
        ahead = self.ahead(live)
        seconds = sum(map(self.left, [*running, *ahead])) / self.pace.painters
        return replace(live.record, queue_position=len(ahead) + 1, eta=own + seconds)

    def ahead(self, live: Live) -> list[Live]:
        """The queued jobs that come before a queued one, as things stand."""
        mine = self._turn(live)
        queued = [one for one in self.all() if one.record.state == "queued" and one is not live]
        return [one for one in queued if self._turn(one) < mine]

    def _turn(self, live: Live) -> tuple[float, float, float, str]:
        record = live.record
        return self.schedule.served(record.key), self.left(live), record.created, record.id

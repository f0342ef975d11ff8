"""Labelling on many machines: Ray holds each captioner or scorer as an actor.

The missing pictures are dealt out in blocks. A worker writes the journal file of a block in one
piece when all of it is done, so a killed worker leaves nothing, and its block goes to the next.
The data set and the folder of labels must have the same paths on every machine.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from opensana.errors import MissingExtraError, OpensanaError
from opensana.label.captioners import Failure, Maker
from opensana.label.journal import LabelFolder, Line, reject_line, write_block
from opensana.label.stages import PictureSet, Stage, Tally, Task, maker_of, missing, results

LOCAL = "local"
BLOCK = 64
"""Pictures that a killed worker may have to do again."""
RESTARTS = 100
RETRIES = 3
"""How often a block may kill its worker."""


class Worker:
    """A stage with its model in memory; Ray makes one actor of it for each worker."""

    def __init__(
        self, open_stage: Callable[[], Stage], open_pictures: Callable[[], PictureSet], folder: Path
    ) -> None:
        self.stage, self.pictures, self.folder = open_stage(), open_pictures(), folder

    def describe(self) -> tuple[str, str, Maker | None]:
        return self.stage.kind, self.stage.name, maker_of(self.stage)

    def work(self, tasks: Sequence[Task]) -> list[tuple[str, Failure | None]]:
        """Do a block and write its file; the keys, and why one has failed."""
        done: list[Line] = []
        outcomes: list[tuple[str, Failure | None]] = []
        for key, lines in results(self.stage, tasks, self.pictures):
            failure = lines if isinstance(lines, Failure) else None
            outcomes.append((key, failure))
            done += [] if isinstance(lines, Failure) else lines
        name = _block_name(self.stage.name, tasks)
        rejects = [reject_line(key, self.stage.name, why) for key, why in outcomes if why]
        write_block(self.folder, "rejects", name, rejects)
        write_block(self.folder, self.stage.kind, name, done)
        return outcomes


class Cluster:
    """Runs stages on the actors of a Ray cluster; use `connected`."""

    def __init__(self, ray: Any, workers: int | None) -> None:
        self.ray = ray
        self.gpus = int(ray.cluster_resources().get("GPU", 0))
        self.workers = workers or max(1, self.gpus)

    def run(
        self,
        open_stage: Callable[[], Stage],
        open_pictures: Callable[[], PictureSet],
        labels: LabelFolder,
        *,
        allowed: int,
    ) -> tuple[str, Sequence[str]]:
        """Do a stage in blocks; its name and the keys of the pictures that failed."""
        actors = self._actors(open_stage, open_pictures, labels.folder.resolve())
        try:
            return self._deal(actors, open_pictures(), labels, allowed)
        except self.ray.exceptions.RayError as error:
            raise OpensanaError(f"a worker failed: {_last_line(error)}") from error
        finally:
            for actor in actors:
                self.ray.kill(actor)
            labels.fold()

    def _actors(self, *arguments: Any) -> list[Any]:
        gpus = min(1.0, self.gpus / self.workers)
        options = {"max_restarts": RESTARTS, "max_task_retries": RETRIES, "num_gpus": gpus}
        remote = self.ray.remote(Worker).options(**options)
        return [remote.remote(*arguments) for _ in range(self.workers)]

    def _deal(
        self, actors: list[Any], pictures: PictureSet, labels: LabelFolder, allowed: int
    ) -> tuple[str, Sequence[str]]:
        from ray.util import ActorPool

        kind, name, maker = self.ray.get(actors[0].describe.remote())
        if maker is not None:
            labels.register(maker)
        tasks = missing(kind, name, pictures, labels)
        blocks = [tasks[start : start + BLOCK] for start in range(0, len(tasks), BLOCK)]
        with Tally(name, tasks=len(tasks), allowed=allowed) as tally:
            finished = ActorPool(actors).map_unordered(_work, blocks)
            for outcomes in finished:
                for key, failure in outcomes:
                    tally.count(key, failure)
        return name, tally.failures


@contextmanager
def connected(address: str, workers: int | None) -> Iterator[Cluster]:
    """A cluster at an address, or a new one on this machine (`local`) that ends with the block."""
    try:
        import ray
    except ImportError:
        raise MissingExtraError("cluster", "ray") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    start = partial(ray.init, **options)
    try:
        if address == LOCAL:
            start(include_dashboard=False, num_cpus=max(os.cpu_count() or 1, workers or 1))
        else:
            start(address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OpensanaError(f"no Ray cluster at {address!r}: {_last_line(error)}") from error
    try:
        yield Cluster(ray, workers)
    finally:
        ray.shutdown()


def _work(actor: Any, tasks: Sequence[Task]) -> Any:
    return actor.work.remote(tasks)


def _block_name(stage: str, tasks: Sequence[Task]) -> str:
    names = "\n".join([stage, *(task.key for task in tasks)])
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]

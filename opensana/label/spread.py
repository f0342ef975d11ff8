"""Run a stage of labelling on the workers of a cluster.

The missing pictures are split into blocks. A worker writes a block's journal file atomically when
the block is done; the block of a killed worker is run again by another.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from opensana.label.captioner import CaptionSource, Failure
from opensana.label.journal import LabelFolder, Line, reject_line, write_block
from opensana.label.stages import (
    PictureSet,
    Stage,
    Tally,
    Task,
    caption_source_of,
    missing,
    results,
)
from opensana.workers.cluster import Cluster

BLOCK = 64
"""Pictures per block: at most so many are repeated when a worker is killed."""

Outcome = tuple[str, Failure | None]


class BlockLabeller:
    """A stage with its model in memory, one per worker."""

    def __init__(
        self, open_stage: Callable[[], Stage], open_pictures: Callable[[], PictureSet], folder: Path
    ) -> None:
        self.stage, self.pictures, self.folder = open_stage(), open_pictures(), folder

    def __call__(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        """Run a block and write its file; yields the keys with their failures."""
        done: list[Line] = []
        outcomes: list[Outcome] = []
        for key, lines in results(self.stage, tasks, self.pictures):
            failure = lines if isinstance(lines, Failure) else None
            outcomes.append((key, failure))
            done += [] if isinstance(lines, Failure) else lines
        names = "\n".join([self.stage.name, *(task.key for task in tasks)])
        name = hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        rejects = [reject_line(key, self.stage.name, why) for key, why in outcomes if why]
        write_block(self.folder, "rejects", name, rejects)
        write_block(self.folder, self.stage.kind, name, done)
        yield outcomes


def run(
    cluster: Cluster,
    open_stage: Callable[[], Stage],
    open_pictures: Callable[[], PictureSet],
    labels: LabelFolder,
    *,
    allowed: int,
) -> tuple[str, Sequence[str]]:
    """Run a stage in blocks; returns its name and the keys of the failed pictures."""
    kind, name, source = cluster.call(partial(_describe, open_stage))
    if source is not None:
        labels.register(source)
    tasks = missing(kind, name, open_pictures(), labels)
    blocks = [tasks[start : start + BLOCK] for start in range(0, len(tasks), BLOCK)]
    open_work = partial(BlockLabeller, open_stage, open_pictures, labels.folder.resolve())
    try:
        with (
            Tally(name, tasks=len(tasks), allowed=allowed) as tally,
            closing(cluster.map(open_work, blocks)) as finished,
        ):
            for outcomes in finished:
                for key, failure in outcomes:
                    tally.count(key, failure)
    finally:
        labels.fold()
    return name, tally.failures


def _describe(open_stage: Callable[[], Stage]) -> tuple[str, str, CaptionSource | None]:
    stage = open_stage()
    return stage.kind, stage.name, caption_source_of(stage)

"""A stage of labelling on the workers of a cluster.

The missing pictures are dealt out in blocks. A worker writes the journal file of a block in one
piece when all of it is done, so a killed worker leaves nothing, and its block goes to the next.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from opensana.label.captioner import Failure, Maker
from opensana.label.journal import LabelFolder, Line, reject_line, write_block
from opensana.label.stages import PictureSet, Stage, Tally, Task, maker_of, missing, results
from opensana.workers.cluster import Cluster

BLOCK = 64
"""Pictures that a killed worker may have to do again."""

Outcome = tuple[str, Failure | None]


class BlockLabeller:
    """A stage with its model in memory; each worker holds one."""

    def __init__(
        self, open_stage: Callable[[], Stage], open_pictures: Callable[[], PictureSet], folder: Path
    ) -> None:
        self.stage, self.pictures, self.folder = open_stage(), open_pictures(), folder

    def __call__(self, tasks: Sequence[Task]) -> Iterator[list[Outcome]]:
        """Do a block and write its file; the keys, and why one has failed."""
        done: list[Line] = []
        outcomes: list[Outcome] = []
        for key, lines in results(self.stage, tasks, self.pictures):
            failure = lines if isinstance(lines, Failure) else None
            outcomes.append((key, failure))
            done += [] if isinstance(lines, Failure) else lines
        name = _block_name(self.stage.name, tasks)
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
    """Do a stage in blocks; its name and the keys of the pictures that failed."""
    kind, name, maker = cluster.call(partial(_describe, open_stage))
    if maker is not None:
        labels.register(maker)
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


def _describe(open_stage: Callable[[], Stage]) -> tuple[str, str, Maker | None]:
    stage = open_stage()
    return stage.kind, stage.name, maker_of(stage)


def _block_name(stage: str, tasks: Sequence[Task]) -> str:
    names = "\n".join([stage, *(task.key for task in tasks)])
    return hashlib.sha256(names.encode("utf-8", "surrogatepass")).hexdigest()[:24]

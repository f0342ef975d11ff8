"""The stages of labelling: what is missing, who makes it, and where the answers go.

A stage turns pictures into lines of one journal, a task (a key) at a time. Stages run here one
after the other (`run`), or spread over machines (`opensana.label.spread`); what the journals hold
already is never made again, so the same command goes on after any interruption.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from PIL import Image
from tqdm import tqdm

from opensana.datasets.record import Source
from opensana.errors import DataError, OpensanaError
from opensana.label.captioner import Captioner, Failure, Maker
from opensana.label.journal import LabelFolder, Line
from opensana.label.labels import Labels, own_maker
from opensana.label.measurements import difference_hash, sharpness
from opensana.workers.threads import in_order

Decode = Callable[[bytes], Image.Image]
"""Encoded bytes to an upright RGB picture; an OpensanaError if they are none."""

AHEAD = 4
"""Pictures that are decoded before they are needed."""
SCORED_AT_ONCE = 8
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Task:
    """A picture to work on; for scores with its captions, under their makers."""

    key: str
    texts: Mapping[str, str] = field(default_factory=dict[str, str])


Work = Iterable[tuple[Task, Image.Image]]
Results = Iterator[tuple[str, list[Line] | Failure]]
"""Keys, and the lines to write or why there are none."""


class Stage(Protocol):
    """Pictures to lines of the journal `kind`; `name` stands in rejects.jsonl."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    def __call__(self, work: Work) -> Results: ...


@dataclass(frozen=True)
class CaptionStage:
    captioner: Captioner
    kind: str = "captions"

    @property
    def name(self) -> str:
        return self.captioner.maker.id

    def __call__(self, work: Work) -> Results:
        for key, text in self.captioner((task.key, image) for task, image in work):
            failed = isinstance(text, Failure)
            yield key, text if failed else [{"key": key, "maker": self.name, "text": text}]


@dataclass(frozen=True)
class FactStage:
    kind: str = "facts"
    name: str = "facts"

    def __call__(self, work: Work) -> Results:
        for task, image in work:
            dhash = f"{difference_hash(image):016x}"
            yield task.key, [{"key": task.key, "sharpness": sharpness(image), "dhash": dhash}]


@dataclass(frozen=True)
class ScoreStage:
    scorer: Any  # a ClipScorer; its module imports torch
    kind: str = "scores"

    @property
    def name(self) -> str:
        return self.scorer.name

    def __call__(self, work: Work) -> Results:
        remaining = iter(work)
        while batch := list(islice(remaining, SCORED_AT_ONCE)):
            texts = [list(task.texts.values()) for task, _ in batch]
            scores = self.scorer([image for _, image in batch], texts)
            for (task, _), found in zip(batch, scores, strict=True):
                yield (
                    task.key,
                    [
                        {"key": task.key, "maker": maker, "scorer": self.name}
                        | {"score": score.value, "windows": score.windows}
                        for maker, score in zip(task.texts, found, strict=True)
                    ],
                )


class PictureSet:
    """The first `limit` pictures of a source under their keys, decoded when asked for."""

    def __init__(self, source: Source, decode: Decode, *, limit: int | None = None) -> None:
        self._source, self._decode = source, decode
        count = len(source) if limit is None else min(limit, len(source))
        self.index = {source.record(index).key: index for index in range(count)}
        if len(self.index) != count:
            raise DataError(f"{count} pictures have only {len(self.index)} different keys")

    def __len__(self) -> int:
        return len(self.index)

    def read(self, key: str) -> Image.Image | Failure:
        """The picture; Failure if it cannot be read."""
        try:
            return self._decode(self._source.picture(self.index[key]))
        except (OpensanaError, OSError, ValueError, Image.DecompressionBombError) as error:
            return Failure(f"the picture cannot be read: {error}"[:300])

    def own_captions(self, key: str) -> dict[str, str]:
        """The source's own captions, under the makers that their scores go by."""
        captions = self._source.record(self.index[key]).captions
        return {own_maker(caption.text): caption.text for caption in captions if caption.text}


def missing(kind: str, name: str, pictures: PictureSet, labels: LabelFolder) -> list[Task]:
    """What the stage of that kind and name has still to do."""
    if kind == "scores":
        return _unscored(name, pictures, labels)
    identity = (name,) if kind == "captions" else ()
    return [Task(key) for key in pictures.index if not labels.has(kind, key, *identity)]


def _unscored(scorer: str, pictures: PictureSet, labels: LabelFolder) -> list[Task]:
    made = Labels.open(labels.folder).texts
    tasks: list[Task] = []
    for key in pictures.index:
        texts = {**pictures.own_captions(key), **made.get(key, {})}
        new = {m: text for m, text in texts.items() if not labels.has("scores", key, m, scorer)}
        if new:
            tasks.append(Task(key, new))
    return tasks


def results(stage: Stage, tasks: Iterable[Task], pictures: PictureSet) -> Results:
    """What the stage makes of its tasks; a picture that cannot be read is a failure."""
    unreadable: deque[tuple[str, Failure]] = deque()

    def readable() -> Work:
        # One other thread decodes: a source need not be safe for several.
        read = in_order(lambda task: (task, pictures.read(task.key)), tasks, workers=1, ahead=AHEAD)
        for task, image in read:
            if isinstance(image, Failure):
                unreadable.append((task.key, image))
            else:
                yield task, image

    for result in stage(readable()):
        yield result
        while unreadable:
            yield unreadable.popleft()
    yield from unreadable


class Tally:
    """Counts what is done and what failed, says so, and stops a run with too many failures."""

    def __init__(self, name: str, *, tasks: int, allowed: int) -> None:
        self.allowed = allowed
        self.failures: list[str] = []
        every = 0.1 if sys.stderr.isatty() else SECONDS_BETWEEN_LINES
        self._bar = tqdm(total=tasks, desc=name, unit=" pictures", mininterval=every)

    def __enter__(self) -> "Tally":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, key: str, failure: Failure | None) -> None:
        """Count one picture; DataError when more failed than are allowed."""
        self._bar.update()
        if failure is None:
            return
        self.failures.append(key)
        if len(self.failures) > self.allowed:
            raise DataError(
                f"{len(self.failures)} pictures failed and {self.allowed} may (--max-bad), the "
                f"last: {key!r}: {failure.reason}; all are in rejects.jsonl, and the same command "
                "tries them again"
            )


def maker_of(stage: Stage) -> Maker | None:
    """Who writes, in a stage that makes captions."""
    return stage.captioner.maker if isinstance(stage, CaptionStage) else None


def run(
    stage: Stage, pictures: PictureSet, labels: LabelFolder, *, allowed: int
) -> tuple[str, Sequence[str]]:
    """Do here what a stage has still to do; its name and the keys of the pictures that failed."""
    maker = maker_of(stage)
    if maker is not None:
        labels.register(maker)
    tasks = missing(stage.kind, stage.name, pictures, labels)
    with Tally(stage.name, tasks=len(tasks), allowed=allowed) as tally:
        for key, lines in results(stage, tasks, pictures):
            failure = lines if isinstance(lines, Failure) else None
            if failure is not None:
                labels.fail(key, stage.name, failure)
            elif not isinstance(lines, Failure):
                labels.add(stage.kind, lines)
            tally.count(key, failure)
    return stage.name, tally.failures

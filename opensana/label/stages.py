"""The stages of labelling: captions, measurements, CLIP scores.

A stage turns tasks (pictures by key) into lines of one journal. Stages run here one after the other
(`run`), or on many machines (`opensana.label.spread`). What is in the journals is not made again,
so the same command resumes an interrupted run.
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
from opensana.label.captioner import Captioner, CaptionSource, Failure
from opensana.label.journal import LabelFolder, Line
from opensana.label.labels import Labels, own_caption_id
from opensana.label.measurements import difference_hash, sharpness
from opensana.workers.threads import in_order

Decode = Callable[[bytes], Image.Image]
"""Encoded bytes to an upright RGB picture; OpensanaError if refused."""

AHEAD = 4
"""Pictures that are decoded in advance."""
SCORED_AT_ONCE = 8
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class Task:
    """A picture to label; for scores with its captions by maker."""

    key: str
    texts: Mapping[str, str] = field(default_factory=dict[str, str])


Work = Iterable[tuple[Task, Image.Image]]
Results = Iterator[tuple[str, list[Line] | Failure]]
"""Keys with the lines to write, or with the failure."""


class Stage(Protocol):
    """Pictures to lines of the journal `kind`; `name` is its id in rejects.jsonl."""

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
        return self.captioner.source.id

    def __call__(self, work: Work) -> Results:
        for key, text in self.captioner((task.key, image) for task, image in work):
            failed = isinstance(text, Failure)
            yield key, text if failed else [{"key": key, "maker": self.name, "text": text}]


@dataclass(frozen=True)
class MeasurementStage:
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
    """The first `limit` pictures of a source by key, decoded on access."""

    def __init__(self, source: Source, decode: Decode, *, limit: int | None = None) -> None:
        self._source, self._decode = source, decode
        count = len(source) if limit is None else min(limit, len(source))
        self.index = {source.record(index).key: index for index in range(count)}
        if len(self.index) != count:
            raise DataError(f"{count} pictures have only {len(self.index)} different keys")

    def __len__(self) -> int:
        return len(self.index)

    def read(self, key: str) -> Image.Image | Failure:
        """Decode a picture; Failure if that is impossible."""
        try:
            return self._decode(self._source.picture(self.index[key]))
        except (OpensanaError, OSError, ValueError, Image.DecompressionBombError) as error:
            return Failure(f"the picture cannot be read: {error}"[:300])

    def own_captions(self, key: str) -> dict[str, str]:
        """The captions that came with a picture, by maker."""
        captions = self._source.record(self.index[key]).captions
        return {own_caption_id(caption.text): caption.text for caption in captions if caption.text}


def missing(kind: str, name: str, pictures: PictureSet, labels: LabelFolder) -> list[Task]:
    """The tasks of a stage that are not in the journals."""
    if kind != "scores":
        identity = (name,) if kind == "captions" else ()
        return [Task(key) for key in pictures.index if not labels.has(kind, key, *identity)]
    made = Labels.open(labels.folder).texts
    tasks: list[Task] = []
    for key in pictures.index:
        texts = {**pictures.own_captions(key), **made.get(key, {})}
        new = {m: text for m, text in texts.items() if not labels.has("scores", key, m, name)}
        if new:
            tasks.append(Task(key, new))
    return tasks


def results(stage: Stage, tasks: Iterable[Task], pictures: PictureSet) -> Results:
    """Run a stage on tasks; pictures that cannot be read are failures."""
    unreadable: deque[tuple[str, Failure]] = deque()

    def readable() -> Work:
        # One thread decodes: a source need not be thread-safe.
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
    """Counts and reports finished and failed pictures; too many failures stop the run."""

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
        """Count a picture; DataError once more have failed than allowed."""
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


def caption_source_of(stage: Stage) -> CaptionSource | None:
    """The source of the captions of a caption stage, else None."""
    return stage.captioner.source if isinstance(stage, CaptionStage) else None


def run(
    stage: Stage, pictures: PictureSet, labels: LabelFolder, *, allowed: int
) -> tuple[str, Sequence[str]]:
    """Run a stage here; returns its name and the keys of the failed pictures."""
    source = caption_source_of(stage)
    if source is not None:
        labels.register(source)
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

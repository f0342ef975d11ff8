"""A labelling run: every captioner, then measurements, then the CLIP scores of all captions."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from opensana.errors import ConfigError
from opensana.label import spread, stages
from opensana.label.captioner import Settings
from opensana.label.journal import LabelFolder, all_lines, write_lines, writing
from opensana.label.measurements import duplicate_groups
from opensana.label.opening import check_spec, open_captioner
from opensana.label.stages import CaptionStage, MeasurementStage, PictureSet, ScoreStage, Stage
from opensana.workers.cluster import check_workers, connected

OpenStage = Callable[[], Stage]


@dataclass(frozen=True)
class Plan:
    """What to make of each picture, and where."""

    captioners: tuple[str, ...] = ()
    clip: str | None = None
    measure: bool = False
    settings: Settings = field(default_factory=Settings)
    max_bad: float = 0.01
    """The share of pictures that may fail in each stage."""
    ray: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for spec in self.captioners:
            check_spec(spec)
        if not (self.captioners or self.clip or self.measure):
            raise ConfigError("nothing to do; give --captioner, --clip or --facts")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad is a share of 0 to 1, got {self.max_bad}")
        check_workers(self.ray, self.workers)

    @property
    def stages(self) -> list[OpenStage]:
        """The stages in order, not loaded yet."""
        captions = [partial(_caption_stage, spec, self.settings) for spec in self.captioners]
        measurements = [MeasurementStage] if self.measure else []
        scores = [partial(_score_stage, self.clip, self.settings.device)] if self.clip else []
        return [*captions, *measurements, *scores]


def label(open_pictures: Callable[[], PictureSet], to: str | Path, plan: Plan) -> dict[str, int]:
    """Make the missing labels in the folder `to`; returns the failed pictures by stage.

    DataError as soon as a stage has more failures than `plan.max_bad` allows.
    """
    pictures = open_pictures()
    allowed = int(plan.max_bad * len(pictures))
    failed: dict[str, int] = {}
    with ExitStack() as stack:
        labels = stack.enter_context(writing(to))
        run_stage = None
        if plan.ray is not None:
            connection = stack.enter_context(connected(plan.ray, plan.workers))
            run_stage = partial(spread.run, connection)
        for open_stage in plan.stages:
            if run_stage is not None:
                name, keys = run_stage(open_stage, open_pictures, labels, allowed=allowed)
            else:
                name, keys = stages.run(open_stage(), pictures, labels, allowed=allowed)
            failed[name] = len(keys)
        if plan.measure:
            write_duplicates(labels)
    return failed


def write_duplicates(labels: LabelFolder) -> None:
    """Write duplicates.jsonl: one group of near-duplicates per line, largest first."""
    lines = all_lines(labels.folder, "facts")
    groups = duplicate_groups({line["key"]: int(line["dhash"], 16) for line in lines})
    write_lines(labels.folder / "duplicates.jsonl", [{"keys": group} for group in groups])


def _caption_stage(spec: str, settings: Settings) -> Stage:
    return CaptionStage(open_captioner(spec, settings))


def _score_stage(name: str, device: str) -> Stage:
    from opensana.metrics.open_scorer import open_scorer

    return ScoreStage(open_scorer(name, device=device))

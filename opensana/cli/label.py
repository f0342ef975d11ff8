"""`opensana label`: captions by vision-language models, their CLIP scores, facts (paper 3.1)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from opensana.cli.command import Command, emit, say
from opensana.cli.data import open_and_tell
from opensana.errors import RequestError
from opensana.models.options import Device

if TYPE_CHECKING:
    from opensana.label.run import Plan
    from opensana.label.stages import PictureSet


@dataclass(frozen=True)
class Label(Command):
    """Describe the pictures of a data set by models; the same command resumes."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """The data set: a folder, tar shards, or what else `opensana data` reads."""
    to: Annotated[Path, arg(metavar="LABELS")]
    """The folder for the labels; the data set itself is not touched."""
    captioner: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="SPEC")] = ()
    """hf:FOLDER or hf:owner/name for a model run here, http://HOST:8000/v1#MODEL for an
    OpenAI-compatible endpoint, or table:FILE#COLUMN for captions that are there already; may be
    given several times."""
    prompt_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """What to ask the captioners, instead of the built-in prompt."""
    clip: Annotated[str | None, arg(metavar="MODEL")] = None
    """Score all captions with this CLIP or SigLIP model: a folder or a hub id, or a folder that
    `kind = "clip"` of `opensana train` made."""
    facts: bool = False
    """Measure sharpness, and report near-duplicates in duplicates.jsonl."""
    batch: int = 8
    """Pictures at once in a model run here; requests at once to an endpoint."""
    limit: int | None = None
    """Only the first so many pictures."""
    max_bad: Annotated[str, arg(metavar="SHARE")] = "1%"
    """Stop when a larger share of the pictures fails."""
    max_tokens: int = 256
    """The longest caption."""
    largest_side: int = 1024
    """Larger pictures are shrunk to this many pixels for the captioners."""
    device: Device = "auto"
    requests_per_minute: float | None = None
    """How many requests an endpoint gets at most."""
    timeout: float = 120.0
    """Seconds that one request may take."""
    key_variable: Annotated[str, arg(metavar="NAME")] = "OPENAI_API_KEY"
    """The environment variable that holds an endpoint's key; sent by https or to this machine."""
    ray: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Spread the work over the Ray cluster at this address, or over `local` processes."""
    workers: int | None = None
    """How many with --ray; left out, one on each GPU, or one."""

    def run(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise RequestError(f"--limit must be positive, got {self.limit}")
        plan = self.plan()
        from opensana.label.run import label

        pictures = partial(open_pictures, self.path, self.limit, plan.max_bad)
        failed = label(pictures, self.to, plan)
        for name, count in failed.items():
            if count:
                say(f"{count} pictures failed in {name}: {self.to / 'rejects.jsonl'} says why")
        emit(str(self.to))

    def plan(self) -> "Plan":
        """What to do, checked before anything is opened."""
        from opensana.datasets.rejects import share_of
        from opensana.label.captioner import DEFAULT_PROMPT, Settings, read_prompt
        from opensana.label.run import Plan

        settings = Settings(
            prompt=DEFAULT_PROMPT if self.prompt_file is None else read_prompt(self.prompt_file),
            max_tokens=self.max_tokens,
            largest_side=self.largest_side,
            batch=self.batch,
            device=self.device,
            requests_per_minute=self.requests_per_minute,
            timeout=self.timeout,
            key_variable=self.key_variable,
        )
        return Plan(
            captioners=self.captioner,
            clip=self.clip,
            measure=self.facts,
            settings=settings,
            max_bad=share_of(self.max_bad),
            ray=self.ray,
            workers=self.workers,
        )


def open_pictures(path: str, limit: int | None, max_bad: float) -> "PictureSet":
    """The pictures of a data set; a worker on another machine opens them anew."""
    from PIL import Image

    from opensana.datasets.rejects import check_bad
    from opensana.label.stages import PictureSet
    from opensana.pictures.decode import decode

    source = open_and_tell(path)
    check_bad(path, source.rejects, len(source), max_bad=max_bad)
    if source.rejects:
        first = source.rejects[0]
        say(f"{path}: {len(source.rejects)} refused, such as {first.path}: {first.reason}")
    return PictureSet(source, lambda data: Image.fromarray(decode(data)), limit=limit)

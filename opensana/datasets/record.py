"""Record, the common form of a sample, and Source, the interface of every data set.

A source has random access by number, and lists what it refused instead of skipping it silently. The
encoded bytes of a picture are read only on access.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Caption:
    """One caption of a picture, its source and its CLIP score.

    `score` is 100 times the cosine similarity of the CLIP embeddings of picture and text, as in the
    published score files; `scorer` names the checkpoint.
    """

    text: str
    captioner: str = "file"
    version: str = ""
    prompt: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    score: float | None = None
    scorer: str = ""


@dataclass(frozen=True)
class Record:
    """One sample: a key that is unique in its source, captions and measurements.

    `width` and `height` are in pixels after the EXIF rotation; `measurements` are numbers by name,
    such as the sharpness.
    """

    key: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    measurements: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Reject:
    """Something that a source could not use, and why."""

    path: str
    reason: str


class Source(Protocol):
    """A numbered set of records, and the encoded bytes of their pictures."""

    @property
    def rejects(self) -> Sequence[Reject]: ...

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record: ...

    def picture(self, index: int) -> bytes:
        """The encoded picture (PNG, JPEG or WebP); DataError if it cannot be read."""
        ...

"""A picture and what is known of it: the one form in which every data source hands out its samples.

A source is numbered, so that training can draw from it in any order; it names what it refused
instead of skipping it in silence. The encoded bytes of a picture are read only when asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Caption:
    """One description of a picture, who wrote it and how well CLIP thinks it fits.

    `score` is 100 times the cosine of the picture's and the text's CLIP embeddings, as in the
    published score files; `scorer` names the checkpoint that gave it.
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
    """One sample: a key that is unique in its source, the captions, and the measured facts.

    `width` and `height` are in pixels after the EXIF rotation; `facts` holds numbers such as the
    sharpness, under their names.
    """

    key: str
    width: int
    height: int
    captions: tuple[Caption, ...] = ()
    facts: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class Reject:
    """Something that a source could not use: where it is, and why not."""

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

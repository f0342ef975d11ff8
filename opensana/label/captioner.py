"""Captioner, the interface of whatever writes captions (paper 3.1).

A captioner takes pictures with keys and yields each answer as soon as it has it, in any order, so
that no answer is lost or paid for twice. It gets the pixels alone: names, captions and metadata of
a picture stay here.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from opensana.errors import ConfigError, DataError
from opensana.files.encodings import SURROGATE, decode_text

DEFAULT_PROMPT = (
    "Describe this picture for somebody who cannot see it, in two to four plain sentences: what it "
    "shows, colours, positions, background, style, and any text in it, word by word. "
    "Only say what can be seen. Answer with the description alone."
)
LONGEST_CAPTION = 4000
"""In characters; longer answers come from models that repeat themselves."""
LONGEST_PROMPT = 16_384
LOCAL = "hf:"
TABLE = "table:"


@dataclass(frozen=True)
class Failure:
    """A picture that got no answer, and why."""

    reason: str


Pictures = Iterable[tuple[str, Image.Image]]
"""Keys and RGB pictures."""
Answers = Iterator[tuple[str, str | Failure]]
"""Keys and captions on one line, each key once."""


@dataclass(frozen=True)
class CaptionSource:
    """The origin of captions: everything that can change their words."""

    captioner: str
    version: str
    prompt: str
    settings: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The id in the journals (under `maker`): the model's name and a digest of all fields."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{short_name(self.captioner)}-{digest[:12]}"


class Captioner(Protocol):
    """Pictures with keys to captions with keys."""

    @property
    def source(self) -> CaptionSource: ...

    def __call__(self, pictures: Pictures) -> Answers: ...


@dataclass(frozen=True)
class Settings:
    """Settings of captioners; the first three are recorded with every caption."""

    prompt: str = DEFAULT_PROMPT
    max_tokens: int = 256
    largest_side: int = 1024
    """Pictures are downscaled to this many pixels."""
    batch: int = 8
    """The batch size of a local model, or the concurrent requests to an endpoint."""
    device: str = "auto"
    requests_per_minute: float | None = None
    timeout: float = 120.0
    """Seconds for one request to an endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable with an endpoint's API key."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "largest_side", "batch", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.requests_per_minute is not None and not self.requests_per_minute > 0:
            raise ConfigError(f"requests_per_minute must be positive: {self.requests_per_minute}")

    @property
    def recorded(self) -> dict[str, Any]:
        """The settings beside the prompt that can change the words; decoding is greedy."""
        return {
            "max_tokens": self.max_tokens,
            "largest_side": self.largest_side,
            "temperature": 0,
        }


def read_prompt(path: Path) -> str:
    """Read a prompt file, without surrounding whitespace."""
    try:
        text = decode_text(path.read_bytes()).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the prompt file {path}: {error}") from error
    except DataError as error:
        raise ConfigError(f"the prompt file {path} {error}") from None
    if not text or len(text) > LONGEST_PROMPT:
        raise ConfigError(
            f"{path} holds {len(text)} characters; a prompt has 1 to {LONGEST_PROMPT}"
        )
    return text


def single_line(text: str) -> str | Failure:
    """A caption on one line, without control characters and lone surrogates."""
    text = SURROGATE.sub("", text)
    spaced = (" " if unicodedata.category(character) == "Cc" else character for character in text)
    line = " ".join("".join(spaced).split())
    if not line:
        return Failure("the answer is empty")
    if len(line) > LONGEST_CAPTION:
        return Failure(f"the answer has {len(line)} characters, more than {LONGEST_CAPTION}")
    return line


def shrunk(image: Image.Image, largest_side: int) -> Image.Image:
    """The picture, downscaled if a side is longer than `largest_side` pixels."""
    if max(image.size) <= largest_side:
        return image
    factor = largest_side / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)


def short_name(model: str) -> str:
    """The last part of a model's name, fit for a file name."""
    last = model.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last)[:60]

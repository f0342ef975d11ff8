"""How well a caption fits its picture: 100 times the cosine of their CLIP embeddings (paper 3.1).

A caption that is longer than the text tower's context (77 tokens in CLIP) is cut into windows at
the ends of sentences, and its score is the mean over them; every score records how many there were.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from opensana.device import resolve_device
from opensana.errors import NumericsError, WeightsError
from opensana.metrics.library_models import fingerprint, load, published_name
from opensana.weights.locate import locate_library

SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|(?<=[。！？；])")

Fits = Callable[[str], bool]


@dataclass(frozen=True)
class Score:
    """100 times the cosine, and how many windows of the caption it is the mean of."""

    value: float
    windows: int


class Scorer(Protocol):
    """Pictures and captions of each to scores; `name` says which weights gave them."""

    name: str

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[Sequence[str]]
    ) -> list[list[Score]]: ...


class ClipScorer:
    """A CLIP, SigLIP or alike model of transformers, in float32."""

    def __init__(self, name: str, *, device: str = "auto") -> None:
        folder = locate_library(name)
        self.name = f"{published_name(name)}@{fingerprint(folder)}"
        self.device = resolve_device(device)
        needed = ("get_image_features", "get_text_features")
        self.model, processor = load(folder, "AutoModel", *needed)
        self.model.to(self.device, torch.float32).eval()
        self.tokenizer, self.image_processor = processor.tokenizer, processor.image_processor
        self.context = _context(self.model.config)
        # SigLIP was trained on texts that are padded to the full context, and sees the padding.
        self.padded = "siglip" in self.model.config.model_type

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[Sequence[str]]
    ) -> list[list[Score]]:
        """The scores of the captions of each picture."""
        pictures = self.embed_images(images)
        return [
            [self._score(picture, caption) for caption in texts]
            for picture, texts in zip(pictures, captions, strict=True)
        ]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [B, D] of pictures."""
        inputs = self.image_processor(images=list(images), return_tensors="pt")
        return _unit(self.model.get_image_features(**inputs.to(self.device)))

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D] of texts that fit into the context."""
        inputs = self.tokenizer(
            list(texts),
            padding="max_length" if self.padded else "longest",
            return_attention_mask=not self.padded,
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        )
        return _unit(self.model.get_text_features(**inputs.to(self.device)))

    def windows(self, caption: str) -> list[str]:
        """The caption in parts that fit into the text tower's context."""
        return windows(caption, lambda text: len(self.tokenizer(text).input_ids) <= self.context)

    def _score(self, picture: Tensor, caption: str) -> Score:
        parts = self.windows(caption)
        value = 100 * float((self.embed_texts(parts) @ picture).mean())
        if value != value:
            raise NumericsError(f"{self.name} gave NaN for {caption[:80]!r}")
        return Score(value, len(parts))


def windows(text: str, fits: Fits) -> list[str]:
    """As few runs of whole sentences as fit; sentences that do not are cut between words."""
    found: list[str] = []
    for piece in _pieces(text, fits):
        if found and fits(f"{found[-1]} {piece}"):
            found[-1] += f" {piece}"
        else:
            found.append(piece)
    return found


def _pieces(text: str, fits: Fits) -> Iterator[str]:
    for sentence in SENTENCE_END.split(text):
        if fits(sentence):
            yield sentence
        else:
            for word in sentence.split():
                yield from _halves(word, fits)


def _halves(word: str, fits: Fits) -> list[str]:
    """A word, cut until its parts fit."""
    if fits(word) or len(word) == 1:
        return [word]
    middle = len(word) // 2
    return _halves(word[:middle], fits) + _halves(word[middle:], fits)


def _context(config: Any) -> int:
    """The number of tokens that the text tower reads."""
    context = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise WeightsError(f"a {config.model_type} model does not say how long its texts may be")
    return context


def _unit(features: Any) -> Tensor:
    return normalize(getattr(features, "pooler_output", features), dim=-1)

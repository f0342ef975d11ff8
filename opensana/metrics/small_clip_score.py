"""Scores by a small CLIP of opensana, which reads captions through Gemma's frozen states."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from opensana.device import resolve_device
from opensana.errors import NumericsError, WeightsError
from opensana.metrics.clip_score import Score, windows
from opensana.metrics.library_models import fingerprint, published_name
from opensana.metrics.small_clip import load_clip
from opensana.pictures.pixels import to_pixels
from opensana.text.demo_encoder import gemma3_270m_folder
from opensana.text.encoder import TextEncoder
from opensana.weights.locate import locate_library

GEMMA = "gemma-3-270m"
TEXTS_AT_ONCE = 32


class SmallClipScorer:
    """100 times the cosine, as `ClipScorer`, in float32."""

    def __init__(self, name: str, *, device: str = "auto", encoder: TextEncoder | None = None):
        """`encoder` stands in for the one that the folder names."""
        folder = locate_library(name)
        self.name = f"{published_name(name)}@{fingerprint(folder)}"
        self.device = resolve_device(device)
        self.model = load_clip(folder).to(self.device)
        config = self.model.config
        if encoder is None and config.text_encoder != GEMMA:
            raise WeightsError(f"{folder} reads {config.text_encoder!r}; {GEMMA} is what is known")
        self.encoder = encoder or TextEncoder.load(
            gemma3_270m_folder(),
            device=self.device,
            dtype=torch.float32,
            instruction=config.instruction,
        )

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[Sequence[str]]
    ) -> list[list[Score]]:
        """The scores of the captions of each picture."""
        parts = [[self.windows(caption) for caption in texts] for texts in captions]
        flat = [part for texts in parts for split in texts for part in split]
        embedded = iter(self.embed_texts(flat) if flat else [])
        return [
            [self._score(picture, [next(embedded) for _ in split]) for split in texts]
            for picture, texts in zip(self.embed_images(images), parts, strict=True)
        ]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors [B, D] of pictures of any sizes."""
        parts = [self.model.embed_images(to_pixels(i).to(self.device)) for i in images]
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [N, D] of texts."""
        starts = range(0, len(texts), TEXTS_AT_ONCE)
        found = [self.encoder.encode(texts[i : i + TEXTS_AT_ONCE]) for i in starts]
        return torch.cat(
            [self.model.embed_texts(f.states.float(), f.mask.to(f.states.device)) for f in found]
        )

    def windows(self, caption: str) -> list[str]:
        """The caption in parts that the text encoder reads to their ends."""
        return windows(caption, lambda text: self.encoder.truncated(text) is None)

    def _score(self, picture: Tensor, parts: Sequence[Tensor]) -> Score:
        value = 100 * float((torch.stack(list(parts)) @ picture).mean())
        if value != value:
            raise NumericsError(f"{self.name} gave NaN")
        return Score(value, len(parts))

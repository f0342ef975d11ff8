"""Two towers into one space (Radford et al. 2021): a small convolutional one reads pictures, a head
reads the states that a frozen language model has of a caption.

B pictures, T texts, N tokens, S text channels, F features, D size of the space.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from opensana.config import build
from opensana.errors import ConfigError, WeightsError
from opensana.files.writing import read_json
from opensana.layers.precision import without_autocast
from opensana.weights.safetensors import load_into, read_safetensors

CLASS_NAME = "OpensanaClip"
GROUPS = 8
FIRST_TEMPERATURE, LARGEST_SCALE = 0.07, 100.0
MOST = 4096


@dataclass(frozen=True)
class ClipConfig:
    """`size`: side in pixels that pictures are brought to; each of `widths` halves it once.

    `text_encoder` and `instruction` say whose states the head reads.
    """

    size: int = 64
    widths: tuple[int, ...] = (32, 64, 128, 256)
    text_channels: int = 640
    text_width: int = 256
    dim: int = 128
    dropout: float = 0.1
    text_encoder: str = "gemma-3-270m"
    instruction: str = "diffusers"

    def __post_init__(self) -> None:
        sizes = (self.size, *self.widths, self.text_channels, self.text_width, self.dim)
        if not self.widths or not all(0 < size <= MOST for size in sizes):
            raise ConfigError(f"the sizes of a CLIP are 1 to {MOST}, got {sizes}")
        if self.size % 2 ** len(self.widths) or any(width % GROUPS for width in self.widths):
            raise ConfigError(
                f"a size of {self.size} must be divisible by 2 for each of the widths"
                f" {self.widths}, and these by {GROUPS}"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout}")

    def to_dict(self) -> dict[str, Any]:
        return {"_class_name": CLASS_NAME, **asdict(self)}


class Stage(nn.Module):
    """Half the resolution, then a residual convolution."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, width, 3, stride=2, padding=1)
        self.down_norm = nn.GroupNorm(GROUPS, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.down_norm(self.down(x)))
        return x + functional.gelu(self.norm(self.conv(x)))


class TextHead(nn.Module):
    """A projection of every token's state, and a mean over tokens weighted by attention."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.text_channels, config.text_width)
        self.attention = nn.Linear(config.text_width, 1)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(config.text_width, config.dim, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States [T, N, S] and their mask [T, N] to [T, D]."""
        hidden = self.dropout(functional.gelu(self.project(states)))
        scores = self.attention(hidden).float()
        weights = scores.masked_fill(~mask[..., None], -math.inf).softmax(1)
        return self.out((weights * hidden).sum(1))


class Clip(nn.Module):
    """Pictures and captions as unit vectors; their cosine says how well they fit."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        pairs = zip((3, *config.widths), config.widths, strict=False)
        self.stages = nn.Sequential(*(Stage(*pair) for pair in pairs))
        self.image_out = nn.Linear(config.widths[-1], config.dim, bias=False)
        self.text = TextHead(config)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / FIRST_TEMPERATURE)))

    def forward(self, pixels: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Logits [B, T]: cosines divided by the learned temperature."""
        scale = self.log_scale.exp().clamp(max=LARGEST_SCALE)
        images, texts = self.embed_images(pixels), self.embed_texts(states, mask)
        with without_autocast(pixels.device):  # near 100, bfloat16 would tell halves apart
            return scale * images @ texts.T

    def image_features(self, pixels: Tensor) -> Tensor:
        """Features [B, F] of pictures [B, 3, H, W] in -1..1, before the shared space."""
        if pixels.shape[-2:] != (self.config.size, self.config.size):
            pixels = shrunk(pixels, self.config.size)
        return self.stages(pixels).mean((2, 3))

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Unit vectors [B, D] of pictures [B, 3, H, W] in -1..1."""
        return functional.normalize(self.image_out(self.image_features(pixels)).float(), dim=-1)

    def embed_texts(self, states: Tensor, mask: Tensor) -> Tensor:
        """Unit vectors [T, D] of captions: states [T, N, S] with their mask [T, N]."""
        return functional.normalize(self.text(states, mask).float(), dim=-1)


def shrunk(pixels: Tensor, size: int) -> Tensor:
    """Pictures [B, 3, H, W] by averages to [B, 3, size, size], where they are.

    An Apple GPU pools only what `size` divides; the rest is pooled on the CPU.
    """
    divides = all(side % size == 0 for side in pixels.shape[-2:])
    if pixels.device.type != "mps" or divides:
        return functional.adaptive_avg_pool2d(pixels, size)
    return functional.adaptive_avg_pool2d(pixels.cpu(), size).to(pixels.device)


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """InfoNCE in both directions, averaged; `positive` [B, T] marks the pairs that belong together.

    Every row and column has at least one; where it has several, each gets an equal share, so that
    two captions of one picture do not push each other away.
    """
    target = positive.float()
    by_picture = (target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = (target / target.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return -(by_picture + by_text) / 2


def load_clip(folder: str | Path) -> Clip:
    """The CLIP of a folder, in float32 on the CPU, for inference."""
    folder = Path(folder)
    config = read_json(folder / "config.json")
    if config.pop("_class_name", None) != CLASS_NAME:
        raise WeightsError(
            f"{folder} holds no {CLASS_NAME}; train one with recipes/emoji/clip.toml"
        )
    with torch.device("meta"):
        model = Clip(build(ClipConfig, config, where=str(folder / "config.json")))
    load_into(model, read_safetensors(folder), where=folder)
    return model.float().eval().requires_grad_(False)

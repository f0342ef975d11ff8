"""The change of one layer by a LoRA, out of its tensors and of what is known of its strength.

O outputs, I inputs, R rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from opensana.errors import WeightsError
from opensana.weights.formats import format_of
from opensana.weights.lora_names import ALPHA, DOWN, UP, AdaptedLayer
from opensana.weights.lora_settings import LoraSettings


@dataclass(frozen=True)
class LowRank:
    """The change of one layer: strength * up down, as float32."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]
    strength: float

    @property
    def product(self) -> Tensor:
        """[O, I]."""
        return self.strength * (self.up @ self.down)


def changes(
    file: Path, layer: AdaptedLayer, state: Mapping[str, Tensor], settings: LoraSettings | None
) -> Iterator[tuple[str, LowRank]]:
    """The change of a layer, or of each of those that the official code has fused in one."""
    down, up = (_matrix(file, layer.name, state[layer.keys[part]]) for part in (DOWN, UP))
    rank, count = len(down), len(layer.published)
    if rank != up.shape[1] or not rank:
        raise WeightsError(
            f"{file}: the ranks of {layer.name!r} differ: lora_A has {rank}, lora_B {up.shape[1]}"
        )
    if len(up) % count:
        raise WeightsError(f"{file}: lora_B of {layer.name!r} cannot be split in {count}")
    strength = _strength(file, layer, state, settings, rank)
    for name, rows in zip(layer.published, up.chunk(count), strict=True):
        yield name, LowRank(down, rows, strength)


def _matrix(file: Path, layer: str, tensor: Tensor) -> Tensor:
    """[rows, columns] in float32; a convolution's window lies in its columns."""
    if tensor.ndim < 2 or not tensor.is_floating_point():
        raise WeightsError(
            f"{file}: {layer!r} has a LoRA that is no matrix of numbers: stored as "
            f"{format_of(tensor)} of shape {tuple(tensor.shape)}; get it in float32, float16, "
            "bfloat16 or float8"
        )
    return tensor.float().flatten(1)


def _strength(
    file: Path,
    layer: AdaptedLayer,
    state: Mapping[str, Tensor],
    settings: LoraSettings | None,
    rank: int,
) -> float:
    """Alpha / rank: of peft's settings, of the layer's own tensor, or 1."""
    known = settings.strength(layer.name, rank) if settings else None
    if ALPHA not in layer.keys:
        return 1.0 if known is None else known
    tensor = state[layer.keys[ALPHA]]
    if tensor.numel() != 1:
        raise WeightsError(f"{file}: {layer.keys[ALPHA]!r} must be one number")
    own = float(tensor) / rank
    if known is not None and known != own:
        raise WeightsError(
            f"{file}: {layer.name!r} has two strengths: {own:g} by {layer.keys[ALPHA]!r}, "
            f"{known:g} by peft's settings"
        )
    return own

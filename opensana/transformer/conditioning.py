"""Conditioning of the blocks: timestep, guidance, caption and, at 2K and 4K, position (paper 2.2).

Shapes: B batch, N tokens of the image, M of the text, C channels.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.device import has_own_memory

FREQUENCIES = 128
LONGEST_PERIOD = 10000.0
KEPT_GRIDS = 2
"""All steps of a picture share one grid, which takes 150 MB at 4K."""
CPU = torch.device("cpu")


def sinusoid(positions: Tensor) -> Tensor:
    """Sinusoidal embedding of scalars [B]: cosines, then sines, at 128 frequencies, [B, 256].

    Always float32: near 1000, bfloat16 has only every fourth timestep.
    """
    steps = torch.arange(FREQUENCIES, dtype=torch.float32, device=positions.device)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * steps / FREQUENCIES)
    angles = positions.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ScalarEmbedder(nn.Module):
    """One scalar per sample [B] -> [B, C]: sinusoid, Linear, SiLU, Linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * FREQUENCIES, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, scalars: Tensor, dtype: torch.dtype) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid(scalars).to(dtype))))


class TimeEmbedding(nn.Module):
    """Timestep [B] -> embedding [B, C] and all blocks' modulation [B, 6, C] (adaLN-single)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": ScalarEmbedder(channels)})
        self.linear = nn.Linear(channels, 6 * channels)

    @property
    def timestep_embedder(self) -> ScalarEmbedder:
        """Its published name is one level deeper than in the model with guidance."""
        return cast(ScalarEmbedder, self.emb["timestep_embedder"])

    def forward(
        self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        embedding = self.timestep_embedder(timestep, dtype)
        return embedding, self.linear(F.silu(embedding)).unflatten(-1, (6, -1))


class TimeGuidanceEmbedding(nn.Module):
    """As `TimeEmbedding`, with the guidance scale [B] embedded as well (SANA-Sprint)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.timestep_embedder = ScalarEmbedder(channels)
        self.guidance_embedder = ScalarEmbedder(channels)
        self.linear = nn.Linear(channels, 6 * channels)

    def forward(
        self, timestep: Tensor, guidance: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        assert guidance is not None
        embedding = self.timestep_embedder(timestep, dtype) + self.guidance_embedder(
            guidance, dtype
        )
        return embedding, self.linear(F.silu(embedding)).unflatten(-1, (6, -1))


class Moment(NamedTuple):
    """Timesteps as the network is conditioned on them: a row for each sample, or one for all."""

    embedding: Tensor
    """[B, C]"""
    blocks: Sequence[Tensor]
    """Of each block [B, 6, C]: the modulation, or what the block makes of it."""

    def row(self, index: int) -> "Moment":
        """One timestep, for all samples."""
        chosen = slice(index, index + 1)
        return Moment(self.embedding[chosen], [block[chosen] for block in self.blocks])


class CaptionProjection(nn.Module):
    """Prompt embeddings [B, M, D] -> [B, M, C]: Linear, GELU (tanh form), Linear."""

    def __init__(self, text_channels: int, channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(text_channels, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, text: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(text), approximate="tanh"))


def drop_padding(text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Move valid tokens to the front and cut text [B, M, D] and mask to the longest row.

    The mask becomes None if no padding remains. Attention does not depend on the order of keys, so
    this is exact. A row without any valid token attends to all its tokens, as in the published
    code, whose bias of -10000 on all of them cancels. The mask is best on the CPU: its lengths are
    read, for which the host would wait for an accelerator.
    """
    if mask is None:
        return text, None
    if mask.dtype != torch.bool:
        raise TypeError(f"a text mask must be boolean, got {mask.dtype}")
    mask = mask | ~mask.any(dim=1, keepdim=True)
    longest = int(mask.sum(dim=1).max())
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        order = mask.byte().argsort(dim=1, descending=True, stable=True)
        text = text.gather(1, order.to(text.device)[:, :, None].expand(-1, -1, text.shape[-1]))
        mask = mask.gather(1, order)
    text, mask = text[:, :longest].contiguous(), mask[:, :longest]
    if bool(mask.all()):
        return text, None
    return text, mask.to(text.device, non_blocking=has_own_memory(text.device))


def positions(
    height: int,
    width: int,
    channels: int,
    *,
    base: int,
    interpolation: float,
    device: torch.device = CPU,
) -> Tensor:
    """Fixed 2-D sinusoidal position embeddings of a grid: [height * width, C], float32.

    Half of the channels encode x, half y. Every grid spans the same coordinates, 0 to
    `base / interpolation`. Computed on the CPU, as some devices lack float64.
    """
    if device.type == "meta":
        return torch.empty(height * width, channels, device=device)
    across = _positions_1d(width, channels // 2, base=base, interpolation=interpolation)
    down = _positions_1d(height, channels // 2, base=base, interpolation=interpolation)
    grid = (height, width, channels // 2)
    both = torch.cat([across[None].expand(grid), down[:, None].expand(grid)], -1)
    return both.flatten(0, 1).to(device)


@lru_cache(maxsize=KEPT_GRIDS)
def kept_positions(
    height: int, width: int, channels: int, *, base: int, interpolation: float, device: torch.device
) -> Tensor:
    """`positions`, cached for the next step: read only.

    Computed in another thread, without the caller's modes: a tensor made in inference mode or under
    forward-mode autograd could not be used outside of it.
    """
    make = partial(positions, base=base, interpolation=interpolation, device=device)
    with ThreadPoolExecutor(1) as apart:
        return apart.submit(make, height, width, channels).result()


def _positions_1d(size: int, channels: int, *, base: int, interpolation: float) -> Tensor:
    steps = torch.arange(size, dtype=torch.float32, device=CPU)
    coordinates = steps / (size / base) / interpolation
    exponents = torch.arange(channels // 2, dtype=torch.float64, device=CPU) / (channels / 2)
    angles = coordinates.double()[:, None] * LONGEST_PERIOD**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).float()

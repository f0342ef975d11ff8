"""Starting noise. A seed belongs to an image: the same picture at any batch size and device."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def noise_for(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal latents [B, C, H, W], one a seed; drawn on the CPU in float32."""
    samples = [torch.randn(shape, generator=Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(samples).to(device, dtype)

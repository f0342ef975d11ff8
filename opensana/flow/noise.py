"""Initial noise. Each picture has its own seed, so it is the same at any batch size and device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor


def noise_for(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal latents [B, C, H, W], one per seed, drawn on the CPU in float32."""
    return next(noises_for(seeds, shape, device, dtype))


def noises_for(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """`noise_for`, then fresh noise without end; every seed keeps its own generator.

    diffusers draws the same numbers from a list of CPU generators, one per seed. With a single
    generator it fills the batch from one stream: a picture then depends on the batch size.
    """
    generators = [Generator().manual_seed(seed) for seed in seeds]
    while True:
        samples = [torch.randn(shape, generator=generator) for generator in generators]
        yield torch.stack(samples).to(device, dtype)

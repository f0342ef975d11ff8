"""Noise of pictures. A seed belongs to an image: the same picture at any batch size and device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor


def noise_for(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal latents [B, C, H, W], one a seed; drawn on the CPU in float32."""
    return next(noises_for(seeds, shape, device, dtype))


def noises_for(
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """`noise_for` and then fresh ones without end: every seed keeps its own generator.

    diffusers draws the same numbers when it is given a list with one CPU generator a seed. With a
    single generator, its usual form, it fills the whole batch from one stream, so that a picture
    depends on how many are drawn with it.
    """
    generators = [Generator().manual_seed(seed) for seed in seeds]
    while True:
        samples = [torch.randn(shape, generator=generator) for generator in generators]
        yield torch.stack(samples).to(device, dtype)

"""Noise levels: how training draws sigma, and the schedules of the solvers.

sigma = 1 is pure noise and 0 is data. The network's timestep is 1000 sigma.
"""

from typing import TypeVar

import torch
from torch import Generator, Tensor

TRAIN_LEVELS = 1000

Sigma = TypeVar("Sigma", float, Tensor)


def shift_sigma(sigma: Sigma, shift: float) -> Sigma:
    """sigma' = s sigma / (1 + (s - 1) sigma): s > 1 spends more steps near noise.

    The timestep shift of Stable Diffusion 3 (arXiv 2403.03206, section 5.3.2).
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def network_timestep(sigma: Tensor, *, truncated: bool) -> Tensor:
    """The network's timestep 1000 sigma, float32.

    The published training and flow_dpm code truncates it to an integer, the Euler code does not.
    """
    timestep = TRAIN_LEVELS * sigma
    return (timestep.floor() if truncated else timestep).float()


def logit_normal(
    count: int, generator: Generator | None = None, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Unshifted training sigmas [B], sigmoid(N(mean, std)) (arXiv 2403.03206, section 3.1)."""
    return _to_level(torch.sigmoid(mean + std * torch.randn(count, generator=generator)))


def uniform(count: int, generator: Generator | None = None) -> Tensor:
    """Unshifted training sigmas [B], uniform over the levels."""
    return _to_level(torch.rand(count, generator=generator))


def flow_dpm_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """steps + 1 levels for flow_dpm: 0.999 to 0 in equal steps, shifted."""
    # Bit for bit as published: a last bit can change the truncated 1000 sigma.
    smallest = 1 / TRAIN_LEVELS
    alphas = [1 + index * ((smallest - 1) / steps) for index in range(steps)] + [smallest]
    return tuple(shift_sigma(1 - alpha, shift) for alpha in reversed(alphas))


def euler_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """steps + 1 levels for euler, from 1 to a small level, then 0.

    The published scheduler shifts twice: the smallest level, then the equal steps down to it.
    """
    last = float(shift_sigma(torch.tensor(1 / TRAIN_LEVELS), shift))
    levels = torch.linspace(1.0, last, steps, dtype=torch.float64)
    return (*shift_sigma(levels, shift).float().tolist(), 0.0)


def _to_level(u: Tensor) -> Tensor:
    """u in [0, 1) to one of the training levels 0.001, 0.002, ..., 1."""
    index = (u * TRAIN_LEVELS).floor().clamp(max=TRAIN_LEVELS - 1)
    return (index + 1) / TRAIN_LEVELS

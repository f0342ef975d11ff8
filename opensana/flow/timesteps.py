"""Noise levels: how sigma is drawn in training and walked in sampling.

sigma = 1 is pure noise and 0 is data. The network is told timestep = 1000 sigma.
"""

from typing import TypeVar

import torch
from torch import Generator, Tensor

TRAIN_LEVELS = 1000

Sigma = TypeVar("Sigma", float, Tensor)


def shift_sigma(sigma: Sigma, shift: float) -> Sigma:
    """sigma' = s sigma / (1 + (s - 1) sigma): s > 1 spends more steps near noise."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def network_timestep(sigma: Tensor, *, truncated: bool) -> Tensor:
    """What the network is told about sigma: 1000 sigma, as float32.

    The published training and flow_dpm code truncates it to a whole number, the Euler code not.
    """
    timestep = TRAIN_LEVELS * sigma
    return (timestep.floor() if truncated else timestep).float()


def logit_normal(
    count: int, generator: Generator | None = None, mean: float = 0.0, std: float = 1.0
) -> Tensor:
    """Unshifted training sigmas [B], sigmoid(N(mean, std)): the middle of the path is favoured."""
    return _to_level(torch.sigmoid(mean + std * torch.randn(count, generator=generator)))


def uniform(count: int, generator: Generator | None = None) -> Tensor:
    """Unshifted training sigmas [B], every level equally often."""
    return _to_level(torch.rand(count, generator=generator))


def flow_dpm_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """steps + 1 levels for flow_dpm: 0.999 to 0 in equal steps, shifted."""
    # The published order of operations, to the last bit: truncation of 1000 sigma shows it.
    smallest = 1 / TRAIN_LEVELS
    alphas = [1 + index * ((smallest - 1) / steps) for index in range(steps)] + [smallest]
    return tuple(shift_sigma(1 - alpha, shift) for alpha in reversed(alphas))


def euler_sigmas(steps: int, shift: float) -> tuple[float, ...]:
    """steps + 1 levels for euler, from 1 to a last small level, then 0.

    The published scheduler shifts twice: the smallest level first, then the equal steps to it.
    """
    last = float(shift_sigma(torch.tensor(1 / TRAIN_LEVELS), shift))
    levels = torch.linspace(1.0, last, steps, dtype=torch.float64)
    return (*shift_sigma(levels, shift).float().tolist(), 0.0)


def _to_level(u: Tensor) -> Tensor:
    """u in [0, 1) to one of the training levels 0.001, 0.002, ..., 1."""
    index = (u * TRAIN_LEVELS).floor().clamp(max=TRAIN_LEVELS - 1)
    return (index + 1) / TRAIN_LEVELS

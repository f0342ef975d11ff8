"""Starting from a picture instead of noise, and keeping a part of it.

Both change only what a solver is given: fewer levels, a latent between the picture and the noise,
and a velocity that leads kept cells back to the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opensana.flow.guidance import Velocity
from opensana.flow.path import interpolate, velocity_target


@dataclass(frozen=True)
class Start:
    """Where an edit starts; B is the batch of the noise, or 1 for all of it."""

    x0: Tensor
    """Scaled latent of the picture [B, C, h, w]."""
    strength: float
    """The share of the steps that is run, above 0 and at most 1."""
    redrawn: Tensor | None = None
    """Which cells are drawn anew, bool [h, w]; None for all."""


def from_picture(
    start: Start, velocity: Velocity, noise: Tensor, sigmas: Sequence[float]
) -> tuple[Velocity, Tensor, Sequence[float]]:
    """What a solver is given instead of (velocity, noise, sigmas).

    A strength of 1 starts from the noise itself, as drawing without a picture does.
    """
    sigmas = last_steps(sigmas, start.strength)
    x = noise if start.strength == 1 else interpolate(start.x0, noise, sigmas[0])
    if start.redrawn is not None:
        velocity = keeping(velocity, start.x0, noise, start.redrawn)
    return velocity, x, sigmas


def last_steps(sigmas: Sequence[float], strength: float) -> Sequence[float]:
    """The levels of the last `strength` of the steps; a begun step counts as a whole one."""
    steps = len(sigmas) - 1
    run = max(1, math.ceil(steps * strength - 1e-9))  # 20 x 0.55 is 11 steps, not 11.000000000002
    return sigmas[steps - run :]


def keeping(velocity: Velocity, x0: Tensor, noise: Tensor, redrawn: Tensor) -> Velocity:
    """A velocity that leads the other cells from the noise straight back to x0.

    On the straight path every solver is exact, so after each step these cells are the picture at
    the current noise level, always with the same noise.
    """
    back = velocity_target(x0, noise)

    def kept(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.where(redrawn, velocity(x, timestep), back)

    return kept

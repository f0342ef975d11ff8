"""img2img (SDEdit, arXiv 2108.01073, section 3) and inpainting.

Both change only a solver's inputs: fewer noise levels, a partly noised latent of the picture, and a
velocity that returns the kept cells to the picture.
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
    """The start of an edit; B is the batch of the noise, or 1 for all of it."""

    x0: Tensor
    """Scaled latent of the picture [B, C, h, w]."""
    strength: float
    """The fraction of the steps that is run, above 0 and at most 1."""
    redrawn: Tensor | None = None
    """The mask of inpainting, bool [h, w], true at cells to redraw; None for all."""


def from_picture(
    start: Start, velocity: Velocity, noise: Tensor, sigmas: Sequence[float]
) -> tuple[Velocity, Tensor, Sequence[float]]:
    """A solver's (velocity, noise, sigmas) for an edit.

    A strength of 1 starts from pure noise, as without a picture.
    """
    sigmas = last_steps(sigmas, start.strength)
    x = noise if start.strength == 1 else interpolate(start.x0, noise, sigmas[0])
    if start.redrawn is not None:
        velocity = keeping(velocity, start.x0, noise, start.redrawn)
    return velocity, x, sigmas


def last_steps(sigmas: Sequence[float], strength: float) -> Sequence[float]:
    """The noise levels of the last `strength` of the steps, rounded up."""
    steps = len(sigmas) - 1
    run = max(1, math.ceil(steps * strength - 1e-9))  # 20 x 0.55 is 11 steps, not 11.000000000002
    return sigmas[steps - run :]


def keeping(velocity: Velocity, x0: Tensor, noise: Tensor, redrawn: Tensor) -> Velocity:
    """A velocity that takes the cells outside `redrawn` straight back to x0.

    Every solver is exact on the straight path, so after each step these cells are the picture at
    the current noise level.
    """
    back = velocity_target(x0, noise)

    def kept(x: Tensor, timestep: Tensor) -> Tensor:
        return torch.where(redrawn, velocity(x, timestep), back)

    return kept

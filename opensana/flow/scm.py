"""The multistep consistency sampler of SANA-Sprint (arXiv 2503.09641, section 3).

Predict x0, add fresh noise, predict again. Sprint is distilled in TrigFlow (arXiv 2410.11081,
section 3), x = cos(angle) x0 + sin(angle) noise, where a network F predicts
x0 = cos(angle) x - sin(angle) F. Divided by cos + sin, this is the straight path of `path.py` at
sigma = sin / (cos + sin), and the published F is such that the prediction is x - sigma v there. The
published code converts to TrigFlow and back in every step; here everything stays on the straight
path. Its sigma_data scales noise, inputs and results, and cancels.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from opensana.flow.guidance import Velocity
from opensana.flow.path import interpolate, to_x0
from opensana.flow.solvers import OnStep, Steps, finish_step, follow

FIRST_ANGLE = 1.57080  # pi / 2, pure noise, rounded as published
SECOND_OF_TWO = 1.3


def scm_sigmas(steps: int) -> tuple[float, ...]:
    """steps + 1 levels that end in 0: equal angles, except 1.3 for the second of two steps."""
    angles = [FIRST_ANGLE * (steps - index) / steps for index in range(steps + 1)]
    if steps == 2:
        angles[1] = SECOND_OF_TWO
    return tuple(math.sin(angle) / (math.cos(angle) + math.sin(angle)) for angle in angles)


def scm(
    velocity: Velocity,
    noises: Iterable[Tensor],
    sigmas: Sequence[float],
    on_step: OnStep | None = None,
) -> Tensor:
    """The last prediction of x0 [B, C, H, W] that `scm_steps` returns."""
    return follow(velocity, scm_steps(noises, sigmas, on_step))


def scm_steps(
    noises: Iterable[Tensor], sigmas: Sequence[float], on_step: OnStep | None = None
) -> Steps:
    """To the last prediction of x0 [B, C, H, W]; every step draws fresh noise.

    `noises` yields at least len(sigmas) - 1 latents in float32. The velocity's timestep is sigma
    itself, not 1000 sigma. `on_step` gets the prediction.
    """
    total = len(sigmas) - 1
    x0 = torch.zeros(())
    walk = zip(sigmas[:-1], islice(noises, total), strict=True)
    for step, (sigma, noise) in enumerate(walk):
        x = interpolate(x0, noise, sigma)
        v = yield x, torch.tensor(sigma)
        x0 = to_x0(x, v, sigma)
        finish_step(step, total, x0, on_step)
    return x0

"""The sampler of SANA-Sprint (arXiv 2503.09641): guess the data, add fresh noise, guess again.

Sprint is distilled on TrigFlow's circle, x = cos(angle) x0 + sin(angle) noise, where a network F
answers x0 = cos(angle) x - sin(angle) F. Divided by cos + sin, the circle is the straight path of
`path.py` at sigma = sin / (cos + sin), and F as published is made from a velocity v so that the
answer is x - sigma v there. The published code goes to the circle and back in every step; here
everything stays on the straight path. Its sigma_data, by which it multiplies every noise and
divides every input and result, cancels.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from opensana.flow.guidance import Velocity
from opensana.flow.path import interpolate, to_x0
from opensana.flow.solvers import OnStep, finish_step

FIRST_ANGLE = 1.57080  # a quarter turn, pure noise, rounded as published
SECOND_OF_TWO = 1.3


def scm_sigmas(steps: int) -> tuple[float, ...]:
    """steps + 1 levels that end in 0: equal angles, but of two steps the second is at 1.3."""
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
    """The last guess of x0 [B, C, H, W]; every level before the last takes a noise of its own.

    `noises` gives at least len(sigmas) - 1 latents in float32. The velocity's timestep is sigma
    itself, not 1000 sigma. `on_step` sees the guess.
    """
    total = len(sigmas) - 1
    x0 = torch.zeros(())
    walk = zip(sigmas[:-1], islice(noises, total), strict=True)
    for step, (sigma, noise) in enumerate(walk):
        x = interpolate(x0, noise, sigma)
        x0 = to_x0(x, velocity(x, torch.tensor(sigma, device=x.device)), sigma)
        finish_step(step, total, x0, on_step)
    return x0

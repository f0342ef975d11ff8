"""The seam of the system, and classifier-free guidance as a wrapper around it.

A velocity takes the latent [B, C, H, W] and the timestep (a scalar: 1000 sigma, for Sprint models
sigma itself) and says where the latent is heading.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """v = v_uncond + scale (v_cond - v_uncond); at scale 1 only the conditional is called."""
    if scale == 1.0:
        return conditional

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        without = unconditional(x, timestep)
        return without + scale * (conditional(x, timestep) - without)

    return velocity


def guided_velocity(velocities: Sequence[Velocity], scale: float) -> Velocity:
    """One velocity, or the conditional and the unconditional one guided."""
    if len(velocities) == 1:
        return velocities[0]
    conditional, unconditional = velocities
    return guided(conditional, unconditional, scale)

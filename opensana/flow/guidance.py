"""Velocity, the interface between networks and solvers, and classifier-free guidance on top of it.

A velocity maps a latent [B, C, H, W] and a timestep (a scalar on the CPU: 1000 sigma, for Sprint
models sigma itself) to dx/dsigma [B, C, H, W].
"""

from collections.abc import Callable, Sequence

from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]


def guided(conditional: Velocity, unconditional: Velocity, scale: float) -> Velocity:
    """v = v_uncond + scale (v_cond - v_uncond); at scale 1 only the conditional is called.

    Classifier-free guidance (arXiv 2207.12598, equation 6, with scale = 1 + w).
    """
    if scale == 1.0:
        return conditional

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        without = unconditional(x, timestep)
        return guide(conditional(x, timestep), without, scale)

    return velocity


def guide(given: Tensor, without: Tensor, scale: float) -> Tensor:
    """From the velocity `without` the condition beyond the one `given` it."""
    return without + scale * (given - without)


def guided_velocity(velocities: Sequence[Velocity], scale: float) -> Velocity:
    """The only velocity, or classifier-free guidance of the conditional and unconditional one."""
    if len(velocities) == 1:
        return velocities[0]
    conditional, unconditional = velocities
    return guided(conditional, unconditional, scale)

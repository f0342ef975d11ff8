"""From noise to latents: a request's solver, led by the transformer's velocity.

Shapes: B pictures, C channels of the latent, h w its size.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from opensana.flow.edit import Start, from_picture
from opensana.flow.guidance import Velocity, guided_velocity
from opensana.flow.scm import scm, scm_sigmas
from opensana.flow.solvers import SOLVERS, OnStep
from opensana.request import Request
from opensana.transformer.model import PreparedText, Transformer


def solve(
    transformer: Transformer,
    request: Request,
    texts: Sequence[PreparedText],
    noises: Iterable[Tensor],
    *,
    shift: float,
    on_step: OnStep | None = None,
    start: Start | None = None,
) -> Tensor:
    """The latents [B, C, h, w] of a complete request.

    `texts` are the prompt and, for guidance, the negative prompt; of `noises` scm takes one a step,
    every other solver the first. `shift` moves the noise levels towards noise (section 4.2).
    """
    assert request.steps is not None
    assert request.guidance is not None
    assert request.solver is not None
    velocities = [velocity_of(transformer, text, request.guidance) for text in texts]
    velocity = guided_velocity(velocities, request.guidance)
    if request.solver == "scm":
        return scm(velocity, noises, scm_sigmas(request.steps), on_step)
    solver, noise = SOLVERS[request.solver], next(iter(noises))
    sigmas = solver.sigmas(request.steps, shift)
    if start is not None:
        velocity, noise, sigmas = from_picture(start, velocity, noise, sigmas)
    return solver.solve(velocity, noise, sigmas, on_step)


def velocity_of(transformer: Transformer, text: PreparedText, guidance: float) -> Velocity:
    """The network as a velocity function; Sprint models embed `guidance`, the others ignore it."""

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        embedded = transformer.config.guidance_embeds
        scale = x.new_full((len(x),), guidance) if embedded else None
        return transformer.velocity(x, timestep.expand(len(x)), text, guidance=scale)

    return velocity

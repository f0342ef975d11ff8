"""From noise to latents: a request's solver, led by the transformer's velocity.

Shapes: B pictures, C channels of the latent, h w its size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from opensana.flow.edit import Start, from_picture
from opensana.flow.guidance import Velocity, guided_velocity
from opensana.flow.scm import scm, scm_sigmas
from opensana.flow.solvers import SOLVERS, OnStep
from opensana.request import Request
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import Controlled, ControlledText, ControlNet
from opensana.transformer.model import PreparedText, Transformer

Prepared = PreparedText | ControlledText
Text = TypeVar("Text", contravariant=True)


@dataclass(frozen=True)
class Condition:
    """The latent of a control image [1, C, h, w], and how much it counts."""

    latent: Tensor
    scale: float


class Network(Protocol[Text]):
    """The transformer, or one with a ControlNet, with texts that it prepared itself."""

    @property
    def config(self) -> TransformerConfig: ...

    def velocity(
        self,
        latent: Tensor,
        timestep: Tensor,
        prepared: Text,
        *,
        guidance: Tensor | None = None,
    ) -> Tensor: ...


def network_of(transformer: Transformer, controlnet: ControlNet | None) -> Network[Any]:
    """What leads the solver."""
    return transformer if controlnet is None else Controlled(transformer, controlnet)


def prepare(
    transformer: Transformer,
    controlnet: ControlNet | None,
    states: Tensor,
    mask: Tensor,
    condition: Condition | None,
) -> Prepared:
    """A prompt [B, N, D] as that network reads it, with all that needs no step."""
    if controlnet is None or condition is None:
        return transformer.fold(transformer.prepare_text(states, mask))
    network = Controlled(transformer, controlnet)
    return network.fold(network.prepare(states, mask, condition.latent, scale=condition.scale))


def solve(
    network: Network[Text],
    request: Request,
    texts: Sequence[Text],
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
    velocities = [velocity_of(network, text, request.guidance) for text in texts]
    velocity = guided_velocity(velocities, request.guidance)
    if request.solver == "scm":
        return scm(velocity, noises, scm_sigmas(request.steps), on_step)
    solver, noise = SOLVERS[request.solver], next(iter(noises))
    sigmas = solver.sigmas(request.steps, shift)
    if start is not None:
        velocity, noise, sigmas = from_picture(start, velocity, noise, sigmas)
    return solver.solve(velocity, noise, sigmas, on_step)


def velocity_of(network: Network[Text], text: Text, guidance: float) -> Velocity:
    """The network as a velocity function; Sprint models embed `guidance`, the others ignore it."""

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        embedded = network.config.guidance_embeds
        scale = x.new_full((len(x),), guidance) if embedded else None
        return network.velocity(x, timestep.expand(len(x)), text, guidance=scale)

    return velocity

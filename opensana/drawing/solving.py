"""From a job to latents: what the network reads, noise, and the solver that its velocity leads.

Shapes: B pictures, C channels of the latent, h w its size.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from opensana.drawing.decoding import encode_image
from opensana.drawing.job import Job
from opensana.drawing.prompts import read_prompts
from opensana.flow.edit import Start, from_picture
from opensana.flow.guidance import Velocity, guided_velocity
from opensana.flow.noise import noises_for
from opensana.flow.scm import scm_sigmas, scm_steps
from opensana.flow.solvers import SOLVERS, OnStep, Steps, follow
from opensana.models.open import OpenModel
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import Controlled, ControlledText
from opensana.transformer.model import PreparedText

Prepared = PreparedText | ControlledText
Text = TypeVar("Text", contravariant=True)


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


def network_of(model: OpenModel) -> Network[Any]:
    """What leads the solver."""
    if model.controlnet is None:
        return model.transformer
    return Controlled(model.transformer, model.controlnet)


def encode(
    model: OpenModel,
    job: Job,
    prompts: Sequence[str] | None = None,
    *,
    memory: int | None = None,
) -> list[Prepared]:
    """What the network reads: the prompt, or `prompts`, and for guidance the negative one.

    All that needs no step is done here. With a ControlNet the latent of the control image, made
    with `memory` as in `decode_images`, is read beside each.
    """
    found: list[Prepared] = []
    latent, control = None, job.control_image
    if control is not None:
        latent = encode_image(model.autoencoder, control.image, memory=memory)
    for text in read_prompts(model.text, job, prompts):
        states, mask = text.states.to(model.device), text.mask
        if model.controlnet is None or control is None or latent is None:
            found.append(model.transformer.fold(model.transformer.prepare_text(states, mask)))
        else:
            network = Controlled(model.transformer, model.controlnet)
            found.append(network.fold(network.prepare(states, mask, latent, scale=control.scale)))
    return found


def job_noises(model: OpenModel, job: Job, seeds: Sequence[int] | None = None) -> Iterator[Tensor]:
    """Latents of noise, float32, one a seed: one to start from, and scm takes one a step."""
    shape = (model.autoencoder.latent_channels, *job.latent_size)
    return noises_for(job.seeds if seeds is None else seeds, shape, model.device)


def job_start(model: OpenModel, job: Job, *, memory: int | None = None) -> Start | None:
    """Where an edit starts: the latent of its init image, and the cells that are drawn anew."""
    if job.init_image is None:
        return None
    cells = job.init_image.cells(model.autoencoder.compression)
    redrawn = None if cells is None else torch.from_numpy(cells).to(model.device)
    x0 = encode_image(model.autoencoder, job.init_image.image, memory=memory)
    return Start(x0, job.strength, redrawn)


def solve(
    model: OpenModel,
    job: Job,
    texts: Sequence[Prepared],
    noises: Iterable[Tensor],
    *,
    on_step: OnStep | None = None,
    start: Start | None = None,
) -> Tensor:
    """The latents [B, C, h, w] of a job.

    `texts` are the prompt and, for guidance, the negative prompt; of `noises` scm takes one a step,
    every other solver the first. Noise levels are shifted towards noise (section 4.2).
    """
    network = network_of(model)
    velocities = [velocity_of(network, text, job.guidance) for text in texts]
    return follow(
        *steps_of(job, velocities, noises, shift=model.shift, on_step=on_step, start=start)
    )


def steps_of(
    job: Job,
    velocities: Sequence[Velocity],
    noises: Iterable[Tensor],
    *,
    shift: float,
    on_step: OnStep | None = None,
    start: Start | None = None,
) -> tuple[Velocity, Steps]:
    """The velocity of a job, made of that of each text, and the solver that asks for it."""
    velocity = guided_velocity(velocities, job.guidance)
    if job.solver == "scm":
        return velocity, scm_steps(noises, scm_sigmas(job.steps), on_step)
    solver, noise = SOLVERS[job.solver], next(iter(noises))
    sigmas = solver.sigmas(job.steps, shift)
    if start is not None:
        velocity, noise, sigmas = from_picture(start, velocity, noise, sigmas)
    return velocity, solver.steps(noise, sigmas, on_step)


def velocity_of(network: Network[Text], text: Text, guidance: float) -> Velocity:
    """The network as a velocity function; Sprint models embed `guidance`, the others ignore it."""

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        embedded = network.config.guidance_embeds
        scale = x.new_full((len(x),), guidance) if embedded else None
        return network.velocity(x, timestep.expand(len(x)), text, guidance=scale)

    return velocity

"""From a job to latents: what the network reads, noise, and the solver that its velocity leads.

Shapes: B pictures, C channels of the latent, h w its size.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from opensana.drawing.decoding import encode_image
from opensana.drawing.job import Job
from opensana.drawing.prompts import read_prompts
from opensana.errors import NumericsError
from opensana.flow.edit import Start, from_picture
from opensana.flow.guidance import Velocity, guide, guided_velocity
from opensana.flow.noise import noises_for
from opensana.flow.scm import scm_sigmas, scm_steps
from opensana.flow.solvers import SOLVERS, OnStep, Steps, follow, require_finite
from opensana.models.open import OpenModel
from opensana.runtime.graphs import MOST_TOKENS, TEXT_LENGTHS, Drawing, Graphs
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import Controlled, ControlledText
from opensana.transformer.model import PreparedText

Prepared = PreparedText | ControlledText
Text = TypeVar("Text")


class Network(Protocol[Text]):
    """The transformer, or one with a ControlNet, with texts that it prepared itself."""

    @property
    def config(self) -> TransformerConfig: ...

    def velocity(
        self,
        latent: Tensor,
        timestep: Any,
        prepared: Text,
        *,
        guidance: Tensor | None = None,
    ) -> Tensor: ...

    def moment(self, timestep: Tensor, guidance: Tensor | None = None) -> Any: ...

    def fold(self, prepared: Text) -> Text: ...

    def together(self, texts: Sequence[Text], rows: Sequence[int]) -> Text: ...


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
    latent, control = None, job.control_image
    if control is not None:
        model.begin(model.autoencoder)
        latent = encode_image(model.autoencoder, control.image, memory=memory)
    model.begin(model.text.model)
    texts = read_prompts(model.text, job, prompts)
    model.begin(model.transformer, model.controlnet)
    found: list[Prepared] = []
    for text in texts:
        states, mask = text.states.to(model.device), text.mask
        if model.controlnet is None or control is None or latent is None:
            prepared = model.transformer.prepare_text(states, mask)
        else:
            network = Controlled(model.transformer, model.controlnet)
            prepared = network.prepare(states, mask, latent, scale=control.scale)
        if model.graphs is not None:
            prepared = prepared.padded(TEXT_LENGTHS)
        found.append(network_of(model).fold(prepared))
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
    model.begin(model.autoencoder)
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
    model.begin(model.transformer, model.controlnet)
    network, shift = network_of(model), model.shift
    if model.device.type == "cpu":
        velocities = [velocity_of(network, text, job.guidance) for text in texts]
        return follow(*steps_of(job, velocities, noises, shift=shift, on_step=on_step, start=start))
    velocity = accelerated(network, texts, job, timesteps(job, shift), model.graphs)
    noises = list(islice(noises, job.steps if job.solver == "scm" else 1))

    def run(on_step: OnStep | None) -> Tensor:
        return follow(*steps_of(job, [velocity], noises, shift=shift, on_step=on_step, start=start))

    try:
        return run(on_step)
    except NumericsError:
        run(lambda step, _, x: require_finite(x, step))  # which names the step
        raise


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
    velocity, sigmas = guided_velocity(velocities, job.guidance), levels(job, shift)
    if job.solver == "scm":
        return velocity, scm_steps(noises, sigmas, on_step)
    noise = next(iter(noises))
    if start is not None:
        velocity, noise, sigmas = from_picture(start, velocity, noise, sigmas)
    return velocity, SOLVERS[job.solver].steps(noise, sigmas, on_step)


def accelerated(
    network: Network[Any],
    texts: Sequence[Prepared],
    job: Job,
    timesteps: Tensor,
    graphs: Graphs | None = None,
) -> Velocity:
    """The velocity of a job on an accelerator, `timesteps` [T] being all that it is asked at.

    What is known before the first step is on the device by then, and both halves of guidance are
    one batch: an accelerator is faster with more rows, and waits for its host less. With `graphs`
    a batch that is not too large for it is launched as one.
    """
    embedded = network.config.guidance_embeds
    moments = network.moment(timesteps, torch.tensor([job.guidance]) if embedded else None)
    index = {timestep: place for place, timestep in enumerate(timesteps.tolist())}
    made: dict[int, Callable[[Tensor, int], Tensor]] = {}

    def for_rows(count: int) -> Callable[[Tensor, int], Tensor]:
        """Of so many pictures: the velocities of all texts at one of the timesteps."""
        text = texts[0] if len(texts) == 1 else network.together(texts, [count] * len(texts))
        if graphs is not None and tokens(network.config, job, count) <= MOST_TOKENS:
            return Drawing(graphs, network, moments, text)
        rows = [moments.row(place) for place in range(len(timesteps))]
        return lambda x, place: network.velocity(x, rows[place], text)

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        count = len(x)
        if count not in made:
            made[count] = for_rows(count)
        rows = torch.cat([x] * len(texts)) if len(texts) > 1 else x
        found = made[count](rows, index[timestep.item()])
        return found if len(texts) == 1 else guide(found[:count], found[count:], job.guidance)

    return velocity


def tokens(config: TransformerConfig, job: Job, pictures: int) -> int:
    """Image tokens of a step of so many pictures, in both halves of guidance."""
    height, width = job.latent_size
    return (1 + job.guided) * pictures * height * width // config.patch_size**2


def graph_note(model: OpenModel, job: Job, pictures: int) -> str | None:
    """A line where a model is to launch steps as CUDA graphs, and does not for such a batch."""
    found = tokens(model.transformer.config, job, pictures)
    if model.graphs is None or found <= MOST_TOKENS:
        return None
    return (
        f"steps of {found} tokens are not launched as CUDA graphs, which are for at most "
        f"{MOST_TOKENS}: here kernels take longer than their launches"
    )


def levels(job: Job, shift: float) -> Sequence[float]:
    """The noise levels of a job; an edit runs the last of them."""
    scm = job.solver == "scm"
    return scm_sigmas(job.steps) if scm else SOLVERS[job.solver].sigmas(job.steps, shift)


def timesteps(job: Job, shift: float) -> Tensor:
    """What the network is told at each of the levels but the last, [T] on the CPU."""
    sigmas = levels(job, shift)[:-1]
    if job.solver == "scm":
        return torch.tensor(sigmas)
    return torch.stack([SOLVERS[job.solver].timestep(sigma) for sigma in sigmas])


def velocity_of(network: Network[Text], text: Text, guidance: float) -> Velocity:
    """The network as a velocity function; Sprint models embed `guidance`, the others ignore it."""

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        embedded = network.config.guidance_embeds
        scale = x.new_full((len(x),), guidance) if embedded else None
        return network.velocity(x, timestep.expand(len(x)), text, guidance=scale)

    return velocity

"""Training the Linear DiT by flow matching on cached latents and text states (paper 3.2).

Each sample takes one of its captions, drawn anew every epoch by the recipe's rule; now and then the
null caption stands in for it, which classifier-free guidance needs. What is measured, drawn and
exported are the EMA weights. What trains is a `FlowNetwork`: the transformer, adapters on it, or a
ControlNet beside it.

B samples, R timesteps drawn for each, C channels, h w latent size, N text tokens, D text channels.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensana.features.latents import NULL
from opensana.flow.guidance import guided
from opensana.flow.loss import flow_matching_loss
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS
from opensana.train.checkpoints.export import Export
from opensana.train.engine.figures import Figures, Watch
from opensana.train.engine.loop import drive, require_finite
from opensana.train.engine.parallel import ALONE, Processes, accumulating, clip_gradients
from opensana.train.engine.precision import products
from opensana.train.engine.task import Part
from opensana.train.optim.optimizers import Optimizers, rate_at
from opensana.train.recipe import CachedRecipe, TransformerRecipe
from opensana.train.transformer.batches import FlowBatch, Stream
from opensana.train.transformer.drawing import Drawn, drawn_texts, sample_decoder, write_samples
from opensana.train.transformer.initial import check_fit, initial_transformer, standardise_inputs
from opensana.train.transformer.lora import LoraNetwork, trained_parameters
from opensana.train.transformer.networks import FlowNetwork, PlainNetwork
from opensana.train.transformer.resident import ResidentStream
from opensana.train.workload import workload

BANDS = 4


def train_transformer(recipe: TransformerRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, transformer_task, draw_every=recipe.samples.every)


def transformer_task(recipe: TransformerRecipe, processes: Processes = ALONE) -> "FlowTask":
    """Flow matching of the transformer or of adapters on it, with a prior if the recipe has one."""
    device = processes.device
    own, prior = Stream.open(recipe, device=device), Stream.of_prior(recipe, device)
    streams = [own] if prior is None else [own, prior]
    if recipe.resident:
        streams = [ResidentStream.of(stream) for stream in streams]
    model = initial_transformer(recipe)
    for stream in streams:
        check_fit(model.config, stream.features, stream.recipe.data.folder)
    if recipe.standardise_captions and recipe.initial is None:
        standardise_inputs(model.caption_projection.linear_1, own.features.texts)
    if recipe.lora is None:
        network = PlainNetwork(model, recipe, processes)
    else:
        network = LoraNetwork(model, recipe, recipe.lora, processes)
    drawn = drawn_texts(recipe, own.features, processes)
    return FlowTask(recipe, network, streams, drawn, processes)


class FlowTask:
    """Flow matching of a network on streams of samples.

    The first stream is one's own, which is measured and drawn. A second one is the prior: its loss
    is added, so that the network keeps what it knew.
    """

    def __init__(
        self,
        recipe: CachedRecipe,
        network: FlowNetwork,
        streams: Sequence[Stream],
        drawn: Drawn,
        processes: Processes = ALONE,
    ) -> None:
        self.recipe, self.network, self.streams = recipe, network, streams
        self.drawn, self.processes = drawn, processes
        self.slots = processes.slots(recipe.batch, recipe.accumulate)
        self.features = streams[0].features
        config = network.trained.config
        self.work = workload(recipe, config, processes, streams=len(streams))
        self.optimizer = Optimizers(trained_parameters(network.trained), recipe.optimizer)
        self.parts: dict[str, Part] = {**network.parts, "optimizer": self.optimizer}
        self.watch = Watch(processes.device)
        self.fixed = streams[0].fixed_batches()
        if recipe.samples.autoencoder is not None and processes.first:
            sample_decoder(recipe.samples.autoencoder, self.features)

    def prepare(self, step: int) -> list[FlowBatch]:
        """This process's micro-batches; those of the prior come last."""
        return [stream.batch(step, slots) for stream in self.streams for slots in self.slots]

    def train(self, step: int, batch: list[FlowBatch]) -> Figures:
        """One step of flow matching (paper 3.2; rectified flow, arXiv 2209.03003, equation 1)."""
        recipe, network, processes = self.recipe, self.network, self.processes
        self.optimizer.zero_grad()
        losses: list[Tensor] = []
        sigmas: list[Tensor] = []
        for part in batch:  # gradient accumulation
            with accumulating(network.engine, last=part is batch[-1]):
                # Data and noise level: x0, noise [B * R, C, h, w] and sigma [B * R] in [0, 1]
                data = part.to(processes.device)
                x0 = data.latents.repeat_interleave(data.repeat, dim=0)

                # Velocity and loss: |v(x, 1000 sigma) - (noise - x0)|^2 at
                # x = (1 - sigma) x0 + sigma noise
                with (
                    plain_attention(recipe.compile, processes.device),
                    products(recipe, processes.device),
                ):
                    velocity = network.velocity_for(data)
                    loss = flow_matching_loss(velocity, x0, data.noise, data.sigma)

                # Backward
                (part.weight * loss.mean() / recipe.accumulate).backward()
            losses.append(loss.detach())
            sigmas.append(data.sigma)

        # Gradient clip
        norm = clip_gradients(self.optimizer.parameters, recipe.clip)

        # Metrics
        rate, own = rate_at(recipe, step), len(self.slots)
        numbers = {"losses": torch.cat(losses[:own]), "sigmas": torch.cat(sigmas[:own])}
        if len(self.streams) > 1:
            numbers["losses of the prior"] = torch.cat(losses[own:])
        figures = self.watch.read({**numbers, "norm": norm}, partial(self._told, step, rate))

        # Update
        self.optimizer.step(lr=rate, found_inf=self.watch.found_inf)

        # EMA weights
        network.average.update(network.trained, step)
        return figures

    def _told(self, step: int, rate: float, found: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of a step, of all processes; NumericsError if one is not finite."""
        # Losses and noise levels in the order of the global batch
        pairs = torch.stack([found["losses"], found["sigmas"]])
        loss, sigma = self.processes.all_gather(pairs)
        values = {"loss": float(loss.mean()), **by_band(loss, sigma)}
        if not isfinite(values["loss"]):
            require_finite(step, self._names(step, ~loss.isfinite()), loss=values["loss"])
        if len(self.streams) > 1:
            of_prior = self.processes.all_gather(found["losses of the prior"])
            values["prior_loss"] = float(of_prior.mean())
            require_finite(step, ["those of the prior"], prior_loss=values["prior_loss"])
        norm = float(found["norm"])
        if not isfinite(norm):
            require_finite(step, self._names(step, loss == loss), gradient=norm)
        return {**values, "lr": rate, "gradient": norm}

    def _names(self, step: int, chosen: Tensor) -> list[str]:
        """The samples of the global batch whose losses [B * R] are marked."""
        names = self.streams[0].batch(step, range(self.recipe.batch)).names
        marked = chosen.view(len(names), -1).any(dim=1).tolist()
        return [name for name, mark in zip(names, marked, strict=True) if mark]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on fixed samples, noises and noise levels with the EMA weights."""
        losses, sigmas = [], []
        for batch in self.fixed:
            batch = batch.to(self.processes.device)
            velocity = self.network.averaged_velocity(batch.states, batch.mask, batch.condition)
            losses.append(flow_matching_loss(velocity, batch.latents, batch.noise, batch.sigma))
            sigmas.append(batch.sigma)
        loss = torch.cat(losses)
        bands = by_band(loss, torch.cat(sigmas))
        return {f"fixed_{name}": v for name, v in {"loss": float(loss.mean()), **bands}.items()}

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """Pictures of the recipe's prompts; needs `samples.autoencoder`."""
        options, device = self.recipe.samples, self.processes.device
        if options.autoencoder is None or not self.drawn.states:
            return
        condition = self.drawn.condition
        condition = None if condition is None else condition.to(device)
        prompts, null = (
            self.network.averaged_velocity(states.to(device), mask, condition)
            for states, mask in (self.drawn.batch(), self.features.texts.batch([NULL]))
        )
        solver = SOLVERS["flow_dpm"]
        noise = noise_for(self.drawn.seeds, self.features.latent_shape)
        sigmas = solver.sigmas(options.steps, self.recipe.flow.shift)
        velocity = guided(prompts, null, options.guidance)
        latents = solver.solve(velocity, noise.to(device), sigmas)
        if self.processes.first:
            write_samples(self.recipe, step, latents, self.features)

    def export(self) -> Export:
        return self.network.export()


def plain_attention(compiled: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Attention kernels that can be compiled.

    Compiled for varying text lengths, the backward pass of torch's flash attention for CPUs stops
    at wrong strides (torch 2.13); the plain form is fused with its neighbours anyway. A GPU has no
    such fault, and the plain form would store the scores of every token.
    """
    return sdpa_kernel(SDPBackend.MATH) if compiled and device.type == "cpu" else nullcontext()


def by_band(losses: Tensor, sigma: Tensor) -> dict[str, float]:
    """The mean loss in each quarter of the noise levels that has samples."""
    bands = (sigma * BANDS).long().clamp(max=BANDS - 1)
    present = [band for band in range(BANDS) if bool((bands == band).any())]
    return {f"loss_{band + 1}of{BANDS}": float(losses[bands == band].mean()) for band in present}

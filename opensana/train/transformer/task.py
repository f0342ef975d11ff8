"""Training the Linear DiT by flow matching on cached latents and text states (paper 3.2).

Each sample takes one of its captions, drawn anew every epoch by the recipe's rule; now and then the
null caption stands in for it, which guidance needs. What is measured, drawn and exported are the
averaged weights.

B samples, R timesteps drawn for each, C channels, h w latent size, N text tokens, D text channels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensana.features.latents import NULL
from opensana.flow.guidance import Velocity, guided
from opensana.flow.loss import flow_matching_loss
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS
from opensana.train.checkpoints.export import Export
from opensana.train.engine.compilation import compiled
from opensana.train.engine.ema import Average
from opensana.train.engine.loop import drive, require_finite
from opensana.train.engine.parallel import (
    ALONE,
    Processes,
    accumulating,
    clip_gradients,
    distributed,
    shard,
    whole,
)
from opensana.train.engine.precision import check_dtype, products
from opensana.train.engine.task import ModuleState, Part
from opensana.train.monitor.samples import to_bytes, write_grid
from opensana.train.optim.optimizers import Optimizers, base_rate, learning_rate
from opensana.train.recipe import TransformerRecipe, require
from opensana.train.transformer.batches import SHOWN, FlowBatch, Stream, fixed_batches
from opensana.train.transformer.drawing import drawn_texts, sample_decoder
from opensana.train.transformer.initial import check_fit, initial_transformer, standardise_inputs
from opensana.train.transformer.lora import (
    AdapterState,
    add_adapters,
    lora_export,
    trained_parameters,
)
from opensana.train.workload import workload
from opensana.transformer.controlnet import Controlled
from opensana.transformer.model import PreparedText, Stack, Transformer

Network = Transformer | Controlled
BANDS = 4


def train_transformer(recipe: TransformerRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, TransformerTask, draw_every=recipe.samples.every)


class TransformerTask:
    """The model, its average, its optimisers and its cached features."""

    part = "transformer"
    """The folder of the exported weights."""

    def __init__(self, recipe: TransformerRecipe, processes: Processes = ALONE) -> None:
        self.recipe, self.processes = recipe, processes
        self.slots = processes.slots(recipe.batch, recipe.accumulate)
        require(recipe.data.repeat > 0, "data.repeat", recipe.data.repeat, "1 or more")
        half, device = recipe.dtype == "bfloat16", processes.device
        check_dtype(recipe, device)
        self.own = Stream.open(recipe)
        self.prior = Stream.of_prior(recipe)
        self.features, self.rule = self.own.features, recipe.data.rule
        self.model = self.initial()
        self.work = workload(recipe, self.model.config, processes)
        self.average = Average(self.model, decay=recipe.ema)
        self.network = self.network_of(self.model)
        self.engine = distributed(
            self.network, recipe.parallel, processes, half=half, compiled=recipe.compile
        )
        if processes.sharded:
            shard(self.average.module)
        self.optimizer = Optimizers(trained_parameters(self.model), recipe.optimizer)
        step = self.network.velocity
        self.velocity: Callable[..., Tensor] = compiled(step) if recipe.compile else step
        state = ModuleState if recipe.lora is None else AdapterState
        self.parts: dict[str, Part] = {
            "model": state(self.model),
            "ema": state(self.average.module),
            "optimizer": self.optimizer,
        }
        self.fixed = fixed_batches(recipe, self.features)
        self.drawn = drawn_texts(recipe, self.features, processes)
        if recipe.samples.autoencoder is not None and processes.first:
            sample_decoder(recipe.samples.autoencoder, self.features)

    @property
    def streams(self) -> list["Stream"]:
        return [self.own] if self.prior is None else [self.own, self.prior]

    def initial(self) -> Stack:
        """What trains, as it begins."""
        recipe = self.recipe
        model = initial_transformer(recipe)
        for stream in self.streams:
            check_fit(model.config, stream.features, stream.recipe.data.folder)
        if recipe.standardise_captions and recipe.initial is None:
            standardise_inputs(model.caption_projection.linear_1, self.features.texts)
        if recipe.lora is not None:
            add_adapters(model, recipe.lora, seed=recipe.seed)
        return model.to(self.processes.device)

    def network_of(self, model: nn.Module) -> Network:
        """What gives velocities, with these weights of what trains."""
        assert isinstance(model, Transformer)
        return model

    def prepare(self, step: int) -> list[FlowBatch]:
        """This process's micro-batches; those of the prior come last."""
        return [stream.places(step, slots) for stream in self.streams for slots in self.slots]

    def train(self, step: int, batch: list[FlowBatch]) -> dict[str, float]:
        recipe = self.recipe
        rate = learning_rate(
            step, lr=base_rate(recipe), steps=recipe.steps, schedule=recipe.schedule
        )

        # Forward, loss and backward of each micro-batch
        self.optimizer.zero_grad()
        losses = []
        for part in batch:
            with accumulating(self.engine, last=part is batch[-1]):
                loss = self._losses(part.to(self.processes.device))
                (part.weight * loss.mean() / recipe.accumulate).backward()
            losses.append(loss.detach().cpu())

        # What all processes saw, in the order of the global batch
        own = slice(len(self.slots))
        sigmas = torch.cat([part.sigma for part in batch[own]])
        loss, sigma = self.processes.gathered(torch.stack([torch.cat(losses[own]), sigmas]))
        values = {"loss": float(loss.mean()), **by_band(loss, sigma)}
        if not isfinite(values["loss"]):
            require_finite(step, self._names(step, ~loss.isfinite()), loss=values["loss"])
        if self.prior is not None:
            of_prior = self.processes.gathered(torch.cat(losses[len(self.slots) :]))
            values["prior_loss"] = float(of_prior.mean())
            require_finite(step, ["those of the prior"], prior_loss=values["prior_loss"])

        # Update
        norm = clip_gradients(self.optimizer.parameters, recipe.clip)
        if not isfinite(norm):
            require_finite(step, self._names(step, loss == loss), gradient=norm)
        self.optimizer.step(lr=rate)
        self.average.update(self.model, step)
        return {**values, "lr": rate, "gradient": norm}

    def _losses(self, batch: FlowBatch) -> Tensor:
        """The loss of each sample and timestep [B * R]."""
        repeat = self.recipe.data.repeat
        x0 = batch.latents.repeat_interleave(repeat, dim=0)
        with self._products(x0.device):
            velocity = self.towards(batch)
            return flow_matching_loss(velocity, x0, batch.noise, batch.sigma)

    def towards(self, batch: FlowBatch) -> Velocity:
        """Velocity for this batch.

        With one process the text is prepared once and reused for all R timesteps; under DDP or FSDP
        the call must go through `forward`.
        """
        repeat = self.recipe.data.repeat
        if self.processes.alone:
            text = repeated(self.model.prepare_text(batch.states, batch.mask), repeat)
            return lambda x, timestep: self.velocity(x, timestep, text)
        states, mask = (
            part.repeat_interleave(repeat, dim=0) for part in (batch.states, batch.mask)
        )
        return lambda x, timestep: self.engine(x, timestep, states, mask)

    def _names(self, step: int, chosen: Tensor) -> list[str]:
        """The samples of the global batch whose losses [B * R] are marked."""
        names = self.own.places(step, range(self.recipe.batch)).names
        marked = chosen.view(len(names), -1).any(dim=1).tolist()
        return [name for name, mark in zip(names, marked, strict=True) if mark]

    @contextmanager
    def _products(self, device: torch.device) -> Iterator[None]:
        """The number format of products, and attention kernels that can be compiled.

        Compiled for varying text lengths, the backward pass of torch's flash attention for CPUs
        stops at wrong strides (torch 2.13); the plain form is fused with its neighbours anyway.
        """
        plain = sdpa_kernel(SDPBackend.MATH) if self.recipe.compile else nullcontext()
        with plain, products(self.recipe, device):
            yield

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The loss on fixed samples, noises and noise levels with the averaged weights."""
        losses, sigmas = [], []
        for batch in self.fixed:
            batch = batch.to(self.processes.device)
            velocity = self.averaged_towards(batch.states, batch.mask, batch.condition)
            losses.append(flow_matching_loss(velocity, batch.latents, batch.noise, batch.sigma))
            sigmas.append(batch.sigma)
        loss = torch.cat(losses)
        bands = by_band(loss, torch.cat(sigmas))
        return {f"fixed_{name}": v for name, v in {"loss": float(loss.mean()), **bands}.items()}

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """Pictures of the recipe's prompts; needs `samples.autoencoder`."""
        options = self.recipe.samples
        if options.autoencoder is None or not self.drawn.states:
            return
        latents = self.drawn_latents().cpu()
        if not self.processes.first:
            return
        pixels = sample_decoder(options.autoencoder, self.features).decode(latents)
        write_grid(Path(self.recipe.run), step, to_bytes(pixels), columns=SHOWN)

    def drawn_latents(self) -> Tensor:
        """The latents of the recipe's prompts, drawn with the averaged weights."""
        options = self.recipe.samples
        device, texts = self.processes.device, self.features.texts
        condition = self.drawn_condition()
        prompts, null = (
            self.averaged_towards(states.to(device), mask.to(device), condition)
            for states, mask in (self.drawn.batch(), texts.batch([NULL]))
        )
        solver = SOLVERS["flow_dpm"]
        noise = noise_for(self.drawn.seeds, self.features.latent_shape)
        sigmas = solver.sigmas(options.steps, self.recipe.flow.shift)
        velocity = guided(prompts, null, options.guidance)
        return solver.solve(velocity, noise.to(device), sigmas)

    def drawn_condition(self) -> Tensor | None:
        """What the drawn pictures follow beside their prompts."""
        return None

    def export(self) -> Export:
        if self.recipe.lora is not None:
            return lora_export(self.recipe.lora, self.average.module, Path(self.recipe.run))
        folder = Path(self.recipe.run) / "export" / self.part
        state = whole(self.average.module.state_dict(), self.processes)
        return Export(folder, self.model.config.to_dict(), state)

    def averaged_towards(
        self, states: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Velocity:
        """The averaged weights' velocity towards texts; all processes compute the same."""
        model = self.average.module
        assert isinstance(model, Transformer)
        if self.processes.sharded:
            return lambda x, timestep: model(x, timestep, states, mask)
        text = model.prepare_text(states, mask)
        return lambda x, timestep: model.velocity(x, timestep, text)


def by_band(losses: Tensor, sigma: Tensor) -> dict[str, float]:
    """The mean loss in each quarter of the noise levels that has samples."""
    bands = (sigma * BANDS).long().clamp(max=BANDS - 1)
    present = [band for band in range(BANDS) if bool((bands == band).any())]
    return {f"loss_{band + 1}of{BANDS}": float(losses[bands == band].mean()) for band in present}


def repeated(text: PreparedText, repeat: int) -> PreparedText:
    """Each prompt's keys and values `repeat` times in a row."""
    if repeat == 1:
        return text
    blocks = tuple(
        type(block)(*(part.repeat_interleave(repeat, dim=0) for part in block))
        for block in text.blocks
    )
    mask = None if text.mask is None else text.mask.repeat_interleave(repeat, dim=0)
    return PreparedText(blocks, mask)

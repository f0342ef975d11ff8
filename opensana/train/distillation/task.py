"""Distillation into a model of 1 to 4 steps (SANA-Sprint, arXiv 2503.09641).

The teacher is a flow model and stays as it is. A student of its weights learns to answer, from any
point of the teacher's guided flow, the data at its end (`flow/consistency.py`), and to pass for
data before a discriminator on the teacher's features (`discriminator.py`). What is measured, drawn
and exported are the EMA weights.

B samples, C channels, h w latent size, N text tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensana.device import sent
from opensana.drawing.solving import velocity_of
from opensana.errors import ConfigError
from opensana.features.latents import NULL
from opensana.flow.consistency import change_along, consistency_loss
from opensana.flow.guidance import Velocity
from opensana.flow.noise import noises_for
from opensana.flow.path import interpolate, to_x0
from opensana.flow.scm import scm, scm_sigmas
from opensana.flow.solvers import SOLVERS
from opensana.flow.timesteps import logit_normal, network_timestep
from opensana.train.autoencoder.discriminator import discriminator_loss, generator_loss
from opensana.train.checkpoints.export import Export
from opensana.train.distillation.discriminator import (
    LatentDiscriminator,
    check_blocks,
    tokens_behind,
)
from opensana.train.distillation.student import student_of
from opensana.train.engine.figures import Figures, Watch
from opensana.train.engine.loop import drive, require_finite
from opensana.train.engine.parallel import ALONE, Processes, clip_gradients
from opensana.train.engine.precision import products
from opensana.train.engine.randomness import drawn_by, numpy_generator, torch_generator
from opensana.train.engine.task import ModuleState, Part
from opensana.train.optim.optimizers import Optimizers, rate_at
from opensana.train.recipe import DistillationRecipe, OptimizerRecipe
from opensana.train.transformer.batches import FlowBatch, Stream
from opensana.train.transformer.drawing import drawn_texts, sample_decoder, write_samples
from opensana.train.transformer.initial import check_fit, given_transformer
from opensana.train.transformer.networks import PlainNetwork
from opensana.train.transformer.task import plain_attention
from opensana.train.workload import workload
from opensana.transformer.model import PreparedText

TEACHER_STEPS = 20


def distil(recipe: DistillationRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, DistillationTask, draw_every=recipe.samples.every)


@dataclass(frozen=True)
class DistillationBatch:
    """Samples; of each the guidance scale, and how its latent is noised for the discriminator."""

    flow: FlowBatch
    guidance: Tensor
    noise: Tensor
    sigma: Tensor


class DistillationTask:
    """The student, its EMA weights, its frozen teacher, and the discriminator between them."""

    def __init__(self, recipe: DistillationRecipe, processes: Processes = ALONE) -> None:
        if not processes.alone:
            raise ConfigError("a distillation runs in one process; start it without torchrun")
        self.recipe, self.device = recipe, processes.device
        self.slots = range(recipe.batch)
        self.stream = Stream.open(recipe, device=self.device)
        self.features = self.stream.features
        self.null = self.features.texts.batch([NULL])

        # Teacher and student
        teacher = given_transformer(recipe.initial).requires_grad_(False).eval()
        check_fit(teacher.config, self.features, recipe.data.folder)
        check_blocks(teacher, recipe.adversary.blocks)
        generator = torch_generator(recipe.seed, "guidance embedder")
        student = student_of(teacher, generator=generator).train()
        self.teacher = teacher.to(self.device)
        self.network = PlainNetwork(student, recipe, processes)
        self.student = self.network.trained
        self.optimizer = Optimizers(dict(self.student.named_parameters()), recipe.optimizer)

        # Discriminator
        options = recipe.adversary
        with drawn_by(recipe.seed, "adversary"):
            discriminator = LatentDiscriminator(
                teacher.config.width, blocks=options.blocks, width=options.width
            )
        self.discriminator = discriminator.to(self.device)
        self.discriminator_optimizer = Optimizers(
            dict(self.discriminator.named_parameters()),
            OptimizerRecipe(lr=options.lr, betas=options.betas),
        )

        self.parts: dict[str, Part] = {
            **self.network.parts,
            "optimizer": self.optimizer,
            "adversary": ModuleState(self.discriminator),
            "adversary_optimizer": self.discriminator_optimizer,
        }
        self.watch = Watch(self.device)
        self.work = workload(recipe, self.student.config, processes)
        self.fixed = [batch.to(self.device) for batch in self.stream.fixed_batches()]
        self.ends = [self._teachers_end(batch) for batch in self.fixed]
        self.drawn = drawn_texts(recipe, self.features, processes)
        if recipe.samples.autoencoder is not None:
            sample_decoder(recipe.samples.autoencoder, self.features)

    def prepare(self, step: int) -> DistillationBatch:
        """Samples as in flow matching, some of them at pure noise: a function of seed and step."""
        seed, options, teaching = self.recipe.seed, self.recipe.adversary, self.recipe.consistency
        flow = self.stream.batch(step, self.slots)
        pure, guidance, noises, sigmas = [], [], [], []
        for slot in self.slots:
            pure.append(numpy_generator(seed, step, slot, "pure").random() < teaching.noise)
            number = numpy_generator(seed, step, slot, "guidance").random()
            guidance.append(teaching.guidance[int(number * len(teaching.guidance))])
            generator = torch_generator(seed, step, slot, "judged")
            noises.append(torch.randn(flow.noise.shape[1:], generator=generator))
            sigmas.append(logit_normal(1, generator, options.mean, options.std))
        drawn = torch.tensor(pure), torch.tensor(guidance), torch.stack(noises), torch.cat(sigmas)
        pure, *rest = (sent(part, self.device) for part in drawn)
        return DistillationBatch(replace(flow, sigma=flow.sigma.masked_fill(pure, 1.0)), *rest)

    def train(self, step: int, batch: DistillationBatch) -> Figures:
        """One step of the student, then one of the discriminator (SANA-Sprint 3.2 and 3.3)."""
        recipe, student, warmup = self.recipe, self.student, self.recipe.consistency.warmup
        warmth = min(1.0, (step + 1) / warmup) if warmup else 1.0

        # Data and noise level: x = (1 - sigma) x0 + sigma noise
        data = batch.flow.to(self.device)
        x0, sigma, guidance = data.latents, data.sigma, batch.guidance.to(self.device)
        x = interpolate(x0, data.noise, sigma)
        patch = self.teacher.config.patch_size
        grid = x.shape[-2] // patch, x.shape[-1] // patch

        self.optimizer.zero_grad()
        with self._products():
            # Velocity of the teacher, guided; then of the student, and how its answer
            # f = x - sigma v changes along the teacher's flow (section 3.1; sCM, arXiv 2410.11081)
            with torch.no_grad():
                teacher_text = self.teacher.prepare_text(data.states, data.mask)
                flow = self._flow(
                    x, network_timestep(sigma, truncated=True), teacher_text, guidance
                )
            text = student.prepare_text(data.states, data.mask)
            still = detached(text)
            with sdpa_kernel(SDPBackend.MATH):  # other forms have no forward derivative
                frozen, change = change_along(
                    lambda x, sigma: student.velocity(x, sigma, still, guidance=guidance),
                    *(x, sigma, flow),
                    warmth=warmth,
                )
            v = self.network.velocity(x, sigma, text, guidance=guidance)

            # Discriminator on the student's guess of the data, x0 = x - sigma v (section 3.3)
            guess = to_x0(x, v.float(), sigma)
            fake = self._features(guess, batch, teacher_text)
            logits = self.discriminator(fake, grid)

        # Loss
        losses = consistency_loss(v, frozen, change)
        adversarial = generator_loss(logits)
        loss = losses.mean() + recipe.adversary.weight * adversarial
        numbers = {
            "loss": loss,
            "consistency": losses.mean(),
            "change": change.square().mean(),
            "adversarial": adversarial,
        }

        # Backward and gradient clip
        loss.backward()
        norm = clip_gradients(self.optimizer.parameters, recipe.clip)

        # Metrics
        rate = rate_at(recipe, step)

        def told(found: dict[str, Tensor]) -> dict[str, float]:
            values = {name: float(value) for name, value in found.items()}
            require_finite(step, data.names, **values)
            gradient = values.pop("gradient")
            return {**values, "lr": rate, "gradient": gradient}

        figures = self.watch.read({**numbers, "gradient": norm}, told)

        # Update, then the EMA weights
        self.optimizer.step(lr=rate, found_inf=self.watch.found_inf)
        self.network.average.update(student, step)

        # The discriminator's own step: hinge loss on data and on the same guesses
        self.discriminator_optimizer.zero_grad()
        with self._products():
            with torch.no_grad():
                real = self._features(x0, batch, teacher_text)
            logits_of_real = self.discriminator(real, grid)
            logits_of_fake = self.discriminator([part.detach() for part in fake], grid)
            of_discriminator = discriminator_loss(logits_of_real, logits_of_fake)
        of_discriminator.backward()

        def judged(found: dict[str, Tensor]) -> dict[str, float]:
            values = {"adversary": float(found["adversary"])}
            require_finite(step, data.names, **values)
            return values

        judge = self.watch.read({"adversary": of_discriminator}, judged)
        self.discriminator_optimizer.step(lr=recipe.adversary.lr, found_inf=self.watch.found_inf)
        return lambda: figures() | judge()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """How far one step from pure noise ends from the teacher's twenty: mean square."""
        errors = []
        for batch, end in zip(self.fixed, self.ends, strict=True):
            velocity = self.averaged_velocity(batch.states, batch.mask)
            guess = scm(velocity, [batch.noise], scm_sigmas(1))
            errors.append((guess - end).square().flatten(1).mean(1))
        return {"fixed_loss": float(torch.cat(errors).mean())}

    @torch.no_grad()
    def draw(self, step: int) -> None:
        """Pictures of the recipe's prompts; needs `samples.autoencoder`."""
        options = self.recipe.samples
        if options.autoencoder is None or not self.drawn.states:
            return
        states, mask = self.drawn.batch()
        velocity = self.averaged_velocity(states.to(self.device), mask)
        noises = noises_for(self.drawn.seeds, self.features.latent_shape, self.device)
        latents = scm(velocity, noises, scm_sigmas(options.steps))
        write_samples(self.recipe, step, latents, self.features)

    def export(self) -> Export:
        return self.network.export()

    def averaged_velocity(self, states: Tensor, mask: Tensor) -> Velocity:
        """The EMA weights' velocity for texts, at the guidance of the samples."""
        model = self.network.average.module
        return velocity_of(model, model.prepare_text(states, mask), self.recipe.samples.guidance)

    def _flow(self, x: Tensor, timestep: Tensor, text: PreparedText, guidance: Tensor) -> Tensor:
        """The teacher's guided velocity [B, C, h, w], each sample at its own scale."""
        states, mask = self.null
        null_text = self.teacher.prepare_text(states.to(x.device), mask)
        without = self.teacher.velocity(x, timestep, null_text).float()
        with_text = self.teacher.velocity(x, timestep, text).float()
        return without + guidance[:, None, None, None] * (with_text - without)

    def _features(self, x0: Tensor, batch: DistillationBatch, text: PreparedText) -> list[Tensor]:
        """The teacher's tokens behind the discriminator's blocks, for latents after new noise."""
        noise, sigma = batch.noise.to(x0.device), batch.sigma.to(x0.device)
        with tokens_behind(self.teacher, self.recipe.adversary.blocks) as tokens:
            timestep = network_timestep(sigma, truncated=True)
            self.teacher.velocity(interpolate(x0, noise, sigma), timestep, text)
        return tokens

    @contextmanager
    def _products(self) -> Iterator[None]:
        """The number format of products, and attention's kernels."""
        with plain_attention(True, self.device), products(self.recipe, self.device):
            yield

    @torch.no_grad()
    def _teachers_end(self, batch: FlowBatch) -> Tensor:
        """The latents [B, C, h, w] to which the teacher leads the noises of a fixed batch."""
        text = self.teacher.prepare_text(batch.states, batch.mask)
        guidance = batch.noise.new_full((len(batch.noise),), self.recipe.samples.guidance)
        solver = SOLVERS["flow_dpm"]
        return solver.solve(
            lambda x, timestep: self._flow(x, timestep.expand(len(x)), text, guidance),
            batch.noise,
            solver.sigmas(TEACHER_STEPS, self.recipe.flow.shift),
        )


def detached(text: PreparedText) -> PreparedText:
    """The same text without gradients."""
    blocks = tuple(type(block)(*(part.detach() for part in block)) for block in text.separate)
    return PreparedText(blocks, text.mask)

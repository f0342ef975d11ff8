"""Distillation into a model of 1 to 4 steps (SANA-Sprint, arXiv 2503.09641).

The teacher is a flow model and stays as it is. A student of its weights learns to answer, from any
point of the teacher's guided flow, the data at its end (`flow/consistency.py`), and to pass heads
on the teacher's blocks that know the data (`adversary.py`). What is measured, drawn and exported
are the averaged weights.

B samples, C channels, h w latent size, N text tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

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
from opensana.train.distillation.adversary import Adversary, check_blocks, tokens_behind
from opensana.train.distillation.student import student_of
from opensana.train.engine.loop import drive, require_finite
from opensana.train.engine.parallel import ALONE, Processes, clip_gradients
from opensana.train.engine.precision import products
from opensana.train.engine.randomness import drawn_by, numpy_generator, torch_generator
from opensana.train.engine.task import ModuleState
from opensana.train.optim.optimizers import Optimizers, base_rate, learning_rate
from opensana.train.recipe import DistillationRecipe, OptimizerRecipe
from opensana.train.transformer.batches import FlowBatch
from opensana.train.transformer.initial import check_fit, initial_transformer
from opensana.train.transformer.task import TransformerTask
from opensana.transformer.model import PreparedText, Transformer

TEACHER_STEPS = 20


def distil(recipe: DistillationRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, DistillationTask, draw_every=recipe.samples.every)


@dataclass(frozen=True)
class Judged:
    """How each sample [B] is led, and the noise and level at which its guess is judged."""

    guidance: Tensor
    noise: Tensor
    sigma: Tensor


class DistillationTask(TransformerTask):
    """The model is the student; the adversary has an optimiser of its own."""

    def __init__(self, recipe: DistillationRecipe, processes: Processes = ALONE) -> None:
        self.sprint = recipe
        if not processes.alone:
            raise ConfigError("a distillation runs in one process; start it without torchrun")
        super().__init__(recipe, processes)
        self.null = self.features.texts.batch([NULL])
        options = recipe.adversary
        check_blocks(self.teacher, options.blocks)
        with drawn_by(recipe.seed, "adversary"):
            adversary = Adversary(
                self.teacher.config.width, blocks=options.blocks, width=options.width
            )
        self.adversary = adversary.to(processes.device)
        self.adversary_optimizer = Optimizers(
            dict(self.adversary.named_parameters()),
            OptimizerRecipe(lr=options.lr, betas=options.betas),
        )
        self.parts |= {
            "adversary": ModuleState(self.adversary),
            "adversary_optimizer": self.adversary_optimizer,
        }
        self.ends = [self._teachers_end(batch) for batch in self.fixed]

    def initial(self) -> Transformer:
        recipe = self.sprint
        assert recipe.initial is not None
        self.teacher = initial_transformer(recipe).requires_grad_(False).eval()
        check_fit(self.teacher.config, self.features, recipe.data.folder)
        student = student_of(
            self.teacher,
            generator=torch_generator(recipe.seed, "guidance embedder"),
        )
        self.teacher.to(self.processes.device)
        return student.train().to(self.processes.device)

    # ------------------------------------------------------------------ a step

    def prepare(self, step: int) -> list[FlowBatch]:
        """Samples as in flow matching, some of them at pure noise."""
        (batch,) = super().prepare(step)
        pure = [
            self._draw(step, slot, "pure") < self.sprint.consistency.noise for slot in self.slots[0]
        ]
        return [replace(batch, sigma=batch.sigma.masked_fill(torch.tensor(pure), 1.0))]

    def _draw(self, step: int, slot: int, what: str) -> float:
        return numpy_generator(self.recipe.seed, step, slot, what).random()

    def judged(self, step: int, shape: torch.Size) -> Judged:
        """How the samples of a step are led and judged: a function of seed, step and place."""
        seed, options, scales = (
            self.recipe.seed,
            self.sprint.adversary,
            self.sprint.consistency.guidance,
        )
        guidance, noises, sigmas = [], [], []
        for slot in self.slots[0]:
            guidance.append(scales[int(self._draw(step, slot, "guidance") * len(scales))])
            generator = torch_generator(seed, step, slot, "judged")
            noises.append(torch.randn(shape[1:], generator=generator))
            sigmas.append(logit_normal(1, generator, options.mean, options.std))
        judged = Judged(torch.tensor(guidance), torch.stack(noises), torch.cat(sigmas))
        device = self.processes.device
        return Judged(*(part.to(device) for part in vars(judged).values()))

    def train(self, step: int, batch: list[FlowBatch]) -> dict[str, float]:
        part = batch[0].to(self.processes.device)
        judged = self.judged(step, part.noise.shape)
        with self._products(part.latents.device):
            told = self._teachers_text(part)
        fake, values = self._teach(step, part, judged, told)
        return {**values, **self._judge(part, judged, told, fake)}

    def _teach(
        self, step: int, batch: FlowBatch, judged: Judged, told: PreparedText
    ) -> tuple[list[Tensor], dict[str, float]]:
        """One step of the student, from the texts as the teacher reads them.

        Also what the teacher's blocks made of the student's guesses.
        """
        recipe, warmup = self.sprint, self.sprint.consistency.warmup
        self.optimizer.zero_grad()
        x = interpolate(batch.latents, batch.noise, batch.sigma)
        with self._products(x.device):
            text = self.model.prepare_text(batch.states, batch.mask)
            frozen, change = change_along(
                self._student(detached(text), judged.guidance),
                x,
                batch.sigma,
                self._flow(x, network_timestep(batch.sigma, truncated=True), told, judged.guidance),
                warmth=min(1.0, (step + 1) / warmup) if warmup else 1.0,
            )
            v = self.velocity(x, batch.sigma, text, guidance=judged.guidance)
            guess = to_x0(x, v.float(), batch.sigma)
            fake = self._tokens(guess, told, judged)
            doubt = self.adversary(fake, self._grid(guess))
        losses = consistency_loss(v, frozen, change)
        adversarial = generator_loss(doubt)
        loss = losses.mean() + recipe.adversary.weight * adversarial
        values = {
            "loss": float(loss.detach()),
            "consistency": float(losses.detach().mean()),
            "change": float(change.square().mean()),
            "adversarial": float(adversarial.detach()),
        }
        require_finite(step, batch.names, **values)
        loss.backward()
        norm = clip_gradients(self.optimizer.parameters, recipe.clip)
        require_finite(step, batch.names, gradient=norm)
        rate = learning_rate(
            step, lr=base_rate(recipe), steps=recipe.steps, schedule=recipe.schedule
        )
        self.optimizer.step(lr=rate)
        self.average.update(self.model, step)
        return [part.detach() for part in fake], {**values, "lr": rate, "gradient": norm}

    def _judge(
        self, batch: FlowBatch, judged: Judged, told: PreparedText, fake: Sequence[Tensor]
    ) -> dict[str, float]:
        """One step of the adversary."""
        self.adversary_optimizer.zero_grad()
        grid = self._grid(batch.latents)
        with self._products(batch.latents.device):
            with torch.no_grad():
                real = self._tokens(batch.latents, told, judged)
            loss = discriminator_loss(self.adversary(real, grid), self.adversary(fake, grid))
        loss.backward()
        self.adversary_optimizer.step(lr=self.sprint.adversary.lr)
        return {"adversary": float(loss.detach())}

    # ------------------------------------------------------------- velocities

    def _student(self, text: PreparedText, guidance: Tensor) -> Velocity:
        assert isinstance(self.model, Transformer)
        model = self.model
        return lambda x, sigma: model.velocity(x, sigma, text, guidance=guidance)

    @torch.no_grad()
    def _teachers_text(self, batch: FlowBatch) -> PreparedText:
        return self.teacher.prepare_text(batch.states, batch.mask)

    @torch.no_grad()
    def _flow(self, x: Tensor, timestep: Tensor, text: PreparedText, guidance: Tensor) -> Tensor:
        """The teacher's guided velocity [B, C, h, w], each sample at its own scale."""
        states, mask = (part.to(x.device) for part in self.null)
        without = self.teacher.velocity(
            x, timestep, self.teacher.prepare_text(states, mask)
        ).float()
        towards = self.teacher.velocity(x, timestep, text).float()
        return without + guidance[:, None, None, None] * (towards - without)

    def _grid(self, latents: Tensor) -> tuple[int, int]:
        """Rows and columns of the teacher's tokens."""
        patch = self.teacher.config.patch_size
        return latents.shape[-2] // patch, latents.shape[-1] // patch

    def _tokens(self, x0: Tensor, text: PreparedText, judged: Judged) -> list[Tensor]:
        """What the adversary sees of latents: the teacher's tokens after new noise."""
        noised = interpolate(x0, judged.noise, judged.sigma)
        with tokens_behind(self.teacher, self.sprint.adversary.blocks) as tokens:
            self.teacher.velocity(noised, network_timestep(judged.sigma, truncated=True), text)
        return tokens

    @contextmanager
    def _products(self, device: torch.device) -> Iterator[None]:
        """The number format of products; only attention's plain form has a derivative forwards."""
        with sdpa_kernel(SDPBackend.MATH), products(self.recipe, device):
            yield

    # -------------------------------------------------------------- measuring

    @torch.no_grad()
    def _teachers_end(self, batch: FlowBatch) -> Tensor:
        """The latents [B, C, h, w] to which the teacher leads the noises of a fixed batch."""
        batch = batch.to(self.processes.device)
        text = self._teachers_text(batch)
        guidance = batch.noise.new_full((len(batch.noise),), self.recipe.samples.guidance)
        solver = SOLVERS["flow_dpm"]
        return solver.solve(
            lambda x, timestep: self._flow(x, timestep.expand(len(x)), text, guidance),
            batch.noise,
            solver.sigmas(TEACHER_STEPS, self.recipe.flow.shift),
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """How far one step from pure noise ends from the teacher's twenty: mean square."""
        errors = []
        for batch, end in zip(self.fixed, self.ends, strict=True):
            batch = batch.to(self.processes.device)
            velocity = self._averaged(batch.states, batch.mask)
            guess = scm(velocity, [batch.noise], scm_sigmas(1))
            errors.append((guess - end).square().flatten(1).mean(1))
        return {"fixed_loss": float(torch.cat(errors).mean())}

    def _averaged(self, states: Tensor, mask: Tensor) -> Velocity:
        model = self.average.module
        assert isinstance(model, Transformer)
        return velocity_of(model, model.prepare_text(states, mask), self.recipe.samples.guidance)

    def drawn_latents(self) -> Tensor:
        options, device = self.recipe.samples, self.processes.device
        states, mask = self.drawn.batch()
        noises = noises_for(self.drawn.seeds, self.features.latent_shape, device)
        return scm(
            self._averaged(states.to(device), mask.to(device)), noises, scm_sigmas(options.steps)
        )


def detached(text: PreparedText) -> PreparedText:
    """The same text without gradients."""
    blocks = tuple(type(block)(*(part.detach() for part in block)) for block in text.blocks)
    return PreparedText(blocks, text.mask)

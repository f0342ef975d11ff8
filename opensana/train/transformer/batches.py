"""What a step of flow matching sees: samples, captions, noises and levels from cached features.

Everything in a slot of a step's batch is a function of the seed, the step and the slot.

B samples, R timesteps drawn for each, C channels, h w latent size, N text tokens, D text channels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opensana.errors import DataError
from opensana.features.conditions import Conditions
from opensana.features.latents import NULL, Features
from opensana.flow.noise import noise_for
from opensana.flow.timesteps import logit_normal, shift_sigma, uniform
from opensana.train.caption_rule import CaptionRule, pick
from opensana.train.engine.randomness import numpy_generator, seed_of, torch_generator
from opensana.train.recipe import CachedRecipe, FlowRecipe, TransformerRecipe
from opensana.train.transformer.order import BucketOrder

SHOWN = 8
"""Samples that a run draws when its recipe names no prompts; also the columns of its grids."""


@dataclass(frozen=True)
class FlowBatch:
    """Samples [B, ...], and for each of them R noises and noise levels [B * R, ...]."""

    latents: Tensor
    states: Tensor
    mask: Tensor
    noise: Tensor
    sigma: Tensor
    names: list[str]
    samples: list[int]
    weight: float = 1.0
    """How much the loss of these samples counts."""
    condition: Tensor | None = None
    """Of each sample the latent [B, C, h, w] that a ControlNet follows."""

    @property
    def repeat(self) -> int:
        """R, the timesteps of each sample."""
        return len(self.sigma) // len(self.latents)

    def to(self, device: torch.device) -> "FlowBatch":
        """The same batch on another device; the mask stays, for its lengths are read."""
        tensors = {n: v for n, v in vars(self).items() if isinstance(v, Tensor) and n != "mask"}
        return replace(self, **{name: value.to(device) for name, value in tensors.items()})


@dataclass(frozen=True)
class Stream:
    """Cached features and the order in which the steps of a recipe see them."""

    recipe: CachedRecipe
    features: Features
    order: BucketOrder
    weight: float = 1.0
    conditions: Conditions | None = None

    @classmethod
    def open(cls, recipe: CachedRecipe, *, weight: float = 1.0) -> "Stream":
        features = Features.open(recipe.data.folder, expect=recipe.data.expect)
        if not len(features):
            raise DataError(f"{recipe.data.folder} has no samples; encode it again")
        order = BucketOrder(features.buckets, batch=recipe.batch, seed=recipe.seed)
        return cls(recipe, features, order, weight)

    @classmethod
    def of_prior(cls, recipe: TransformerRecipe) -> "Stream | None":
        """The class samples of DreamBooth's prior preservation (arXiv 2208.12242, 3.2), if any.

        They keep what the model knew of a class while it learns one subject of it, and are drawn
        as the others are, by an order, captions and noises of their own.
        """
        if recipe.prior is None:
            return None
        data = replace(recipe.data, folder=recipe.prior.folder)
        seed = seed_of(recipe.seed, "prior")
        return cls.open(replace(recipe, data=data, seed=seed), weight=recipe.prior.weight)

    def batch(self, step: int, slots: range) -> FlowBatch:
        """The samples in these slots of the global batch: a function of seed, step and slot."""
        recipe, features, rule = self.recipe, self.features, self.recipe.data.rule
        chosen = self.order(step)[slots.start : slots.stop]
        samples = [sample for _, sample in chosen]
        captions = [
            NULL
            if drops(recipe, step, slot)
            else choose_caption(features, rule, recipe.seed, *visit)
            for slot, visit in zip(slots, chosen, strict=True)
        ]
        latents, states, mask = features.batch(samples, captions)
        if recipe.data.text_noise:
            states = states + text_noise(recipe, features, step, slots, mask)
        noise, sigma = draw_noise(recipe, step, features.shape_of(samples[0]), slots)
        names = [f"{s} (caption {c})" for s, c in zip(samples, captions, strict=True)]
        return FlowBatch(
            *(latents, states, mask, noise, sigma, names, samples),
            weight=self.weight,
            condition=self._condition(samples),
        )

    def fixed_batches(self) -> list[FlowBatch]:
        """Evenly spaced samples with their likeliest captions, at evenly spaced noise levels."""
        recipe, features = self.recipe, self.features
        count = min(recipe.evaluate.pictures, len(features))
        spaced = np.linspace(0, len(features) - 1, count).astype(int)
        levels = torch.from_numpy(numpy_generator("fixed").permutation(count))
        sigma = shift_sigma(((levels + 0.5) / count).float(), recipe.flow.shift)
        batches, size = [], recipe.evaluate.batch
        alike = [np.flatnonzero(features.buckets[spaced] == b) for b in np.unique(features.buckets)]
        for slots in (i[first : first + size] for i in alike for first in range(0, len(i), size)):
            samples = [int(sample) for sample in spaced[slots]]
            captions = [likeliest(features, recipe.data.rule, sample) for sample in samples]
            shape = features.shape_of(samples[0])
            noise = noise_for([seed_of("fixed", int(slot)) for slot in slots], shape)
            known = (*features.batch(samples, captions), noise, sigma[slots])
            batches.append(FlowBatch(*known, [], samples, condition=self._condition(samples)))
        return batches

    def _condition(self, samples: list[int]) -> Tensor | None:
        return None if self.conditions is None else self.conditions.batch(samples)


def choose_caption(
    features: Features, rule: CaptionRule, seed: int, epoch: int, sample: int
) -> int:
    """The caption of a sample in an epoch, drawn by the rule."""
    known = features.sample(sample)
    number = numpy_generator(seed, epoch, sample, "caption").random()
    return known.captions[pick(rule.probabilities(known.scores), number)]


def drops(recipe: CachedRecipe, step: int, slot: int) -> bool:
    """Whether the null caption stands in for the one of this slot."""
    return numpy_generator(recipe.seed, step, slot, "dropout").random() < recipe.data.dropout


def text_noise(
    recipe: CachedRecipe, features: Features, step: int, slots: range, mask: Tensor
) -> Tensor:
    """Noise [B, N, D] for the text states in some slots of a step, zero where mask [B, N] is."""
    _, deviation = features.texts.moments
    noise = torch.zeros(*mask.shape, len(deviation))
    for row, real, slot in zip(noise, mask, slots, strict=True):
        generator = torch_generator(recipe.seed, step, slot, "text noise")
        amount = recipe.data.text_noise * uniform(1, generator)
        drawn = torch.randn(int(real.sum()), len(deviation), generator=generator)
        row[real] = amount * deviation * drawn
    return noise


def draw_noise(
    recipe: CachedRecipe, step: int, shape: tuple[int, int, int], slots: range
) -> tuple[Tensor, Tensor]:
    """Noises [B * R, C, h, w] and noise levels [B * R] of some slots of a step."""
    repeat, noises, sigmas = recipe.data.repeat, [], []
    for slot in slots:
        noise = torch_generator(recipe.seed, step, slot, "noise")
        noises.append(torch.randn(repeat, *shape, generator=noise))
        level = torch_generator(recipe.seed, step, slot, "timestep")
        sigmas.append(draw_sigma(repeat, level, recipe.flow))
    return torch.cat(noises), torch.cat(sigmas)


def draw_sigma(count: int, generator: torch.Generator, flow: FlowRecipe) -> Tensor:
    """Shifted noise levels [count] of the recipe's density."""
    if flow.density == "uniform":
        return shift_sigma(uniform(count, generator), flow.shift)
    return shift_sigma(logit_normal(count, generator, flow.mean, flow.std), flow.shift)


def likeliest(features: Features, rule: CaptionRule, sample: int) -> int:
    known = features.sample(sample)
    return known.captions[int(np.argmax(rule.probabilities(known.scores)))]

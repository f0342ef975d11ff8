"""What a step of flow matching sees: samples, captions, noises and levels from cached features.

Everything in a slot of a step's batch is a function of the seed, the step and the slot, on a device
of the same kind.

B samples, R timesteps drawn for each, C channels, h w latent size, N text tokens, D text channels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opensana.device import sent
from opensana.errors import DataError
from opensana.features.conditions import Conditions
from opensana.features.latents import NULL, Features
from opensana.flow.noise import noise_for
from opensana.flow.timesteps import shift_sigma
from opensana.train.caption_rule import CaptionRule, pick
from opensana.train.engine.randomness import numpy_generator, seed_of
from opensana.train.recipe import CachedRecipe, TransformerRecipe
from opensana.train.transformer.draws import BlockDraws, draw_noise, text_noise
from opensana.train.transformer.order import BucketOrder

CPU = torch.device("cpu")
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
    """Cached features and the order in which the steps of a recipe see them.

    Batches are on the device: features travel as they are stored, in half precision.
    """

    recipe: CachedRecipe
    features: Features
    order: BucketOrder
    weight: float = 1.0
    conditions: Conditions | None = None
    device: torch.device = CPU

    @classmethod
    def open(
        cls, recipe: CachedRecipe, *, weight: float = 1.0, device: torch.device = CPU
    ) -> "Stream":
        features = Features.open(recipe.data.folder, expect=recipe.data.expect)
        if not len(features):
            raise DataError(f"{recipe.data.folder} has no samples; encode it again")
        order = BucketOrder(features.buckets, batch=recipe.batch, seed=recipe.seed)
        return cls(recipe, features, order, weight, device=device)

    @classmethod
    def of_prior(cls, recipe: TransformerRecipe, device: torch.device = CPU) -> "Stream | None":
        """The class samples of DreamBooth's prior preservation (arXiv 2208.12242, 3.2), if any.

        They keep what the model knew of a class while it learns one subject of it, and are drawn
        as the others are, by an order, captions and noises of their own.
        """
        if recipe.prior is None:
            return None
        data = replace(recipe.data, folder=recipe.prior.folder)
        seed = seed_of(recipe.seed, "prior")
        own = replace(recipe, data=data, seed=seed)
        return cls.open(own, weight=recipe.prior.weight, device=device)

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
        latents, states, mask = features.batch(samples, captions, dtype=torch.float16)
        latents, states = (sent(part, self.device).float() for part in (latents, states))
        noise, sigma, of_texts = self._drawn(step, samples[0], slots, mask)
        if of_texts is not None:
            states = states + of_texts
        names = [f"{s} (caption {c})" for s, c in zip(samples, captions, strict=True)]
        return FlowBatch(
            *(latents, states, mask, noise, sigma, names, samples),
            weight=self.weight,
            condition=self._condition(samples, self.device),
        )

    def _drawn(
        self, step: int, sample: int, slots: range, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Noises, noise levels and noise on the texts, for latents of this sample's shape."""
        recipe, texts, shape = self.recipe, self.features.texts, self.features.shape_of(sample)
        if self.device.type != "cpu":
            return BlockDraws(recipe, texts, self.device)(step, shape, slots, mask)
        noise, sigma = draw_noise(recipe, step, shape, slots)
        of_texts = text_noise(recipe, texts, step, slots, mask) if recipe.data.text_noise else None
        return noise, sigma, of_texts

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

    def _condition(self, samples: list[int], device: torch.device = CPU) -> Tensor | None:
        if self.conditions is None:
            return None
        return sent(self.conditions.batch(samples), device).float()


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


def likeliest(features: Features, rule: CaptionRule, sample: int) -> int:
    known = features.sample(sample)
    return known.captions[int(np.argmax(rule.probabilities(known.scores)))]

"""What a step draws at random beside samples and captions: noises, noise levels, noise on texts.

On a CPU each slot draws its own, as a function of the seed, the step and the slot. On a device this
would be a launch and more for each: there a block of slots draws at once, with a generator of the
device that depends on the seed, the step and the block. So a run that is resumed, or spread over
more processes, draws what it would have drawn; another kind of device draws other numbers.

B samples, R timesteps drawn for each, C channels, h w latent size, N text tokens, D text channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opensana.device import sent
from opensana.features.texts import Texts
from opensana.flow.timesteps import logit_normal, shift_sigma, uniform
from opensana.train.engine.randomness import seed_of, torch_generator
from opensana.train.recipe import CachedRecipe, FlowRecipe

BLOCK = 64
"""Slots that draw at once: few launches, and little that belongs to another process."""
WORD = "resident"
"""In the seeds, from when only features in a device's memory drew in blocks."""


def draw_noise(
    recipe: CachedRecipe, step: int, shape: tuple[int, int, int], slots: range
) -> tuple[Tensor, Tensor]:
    """Noises [B * R, C, h, w] and noise levels [B * R] of some slots of a step, on the CPU."""
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


def text_noise(recipe: CachedRecipe, texts: Texts, step: int, slots: range, mask: Tensor) -> Tensor:
    """Noise [B, N, D] for the text states of some slots, on the CPU; zero where mask [B, N] is."""
    _, deviation = texts.moments
    noise = torch.zeros(*mask.shape, len(deviation))
    for row, real, slot in zip(noise, mask, slots, strict=True):
        generator = torch_generator(recipe.seed, step, slot, "text noise")
        amount = recipe.data.text_noise * uniform(1, generator)
        drawn = torch.randn(int(real.sum()), len(deviation), generator=generator)
        row[real] = amount * deviation * drawn
    return noise


@dataclass(frozen=True)
class BlockDraws:
    """What the slots of a step draw on a device, in blocks."""

    recipe: CachedRecipe
    texts: Texts
    device: torch.device

    def __call__(
        self, step: int, shape: tuple[int, ...], slots: range, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Noises [B * R, C, h, w], noise levels [B * R], and noise [B, N, D] on the text states.

        The last is None without `data.text_noise`, and zero where mask [B, N] is. Levels are few:
        the CPU draws those of the whole batch.
        """
        recipe, repeat = self.recipe, self.recipe.data.repeat
        noises, amounts, of_texts = [], [], []
        blocks = range(slots.start // BLOCK, -(-slots.stop // BLOCK))
        for block in blocks:
            count = min(BLOCK, recipe.batch - block * BLOCK)
            generator = self._generator(step, block)
            options = {"device": self.device, "generator": generator}
            noises.append(torch.randn((count, repeat, *shape), **options))
            if recipe.data.text_noise:
                amounts.append(torch.rand((count, 1, 1), **options))
                whole = (count, self.texts.longest, len(self.texts.moments[1]))
                of_texts.append(torch.randn(whole, **options)[:, : mask.shape[1]])
        own = slice(slots.start - blocks.start * BLOCK, slots.stop - blocks.start * BLOCK)
        noise = _joined(noises)[own].flatten(0, 1)

        level = torch_generator(recipe.seed, step, f"{WORD} timestep")
        sigma = draw_sigma(recipe.batch * repeat, level, recipe.flow).view(-1, repeat)
        sigma = sent(sigma[slots.start : slots.stop].flatten(), self.device)
        if not recipe.data.text_noise:
            return noise, sigma, None
        deviation = sent(self.texts.moments[1], self.device)
        scale = recipe.data.text_noise * _joined(amounts)[own] * deviation
        real = sent(mask, self.device)[..., None]
        return noise, sigma, scale * _joined(of_texts)[own] * real

    def _generator(self, step: int, block: int) -> torch.Generator:
        words = (self.recipe.seed, step, WORD, *([block] if block else []))
        return torch.Generator(self.device).manual_seed(seed_of(*words))


def _joined(blocks: list[Tensor]) -> Tensor:
    return torch.cat(blocks) if len(blocks) > 1 else blocks[0]

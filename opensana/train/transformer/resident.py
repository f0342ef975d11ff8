"""Cached features in a device's memory, where batches are put together and noise is drawn.

A loader takes a fifth of a millisecond a sample, and a small network on a GPU less: it would be
waited for. Draws are functions of the seed and the step alone, made for the whole batch, so that
slots of several processes or micro-batches are its parts; they are not the loader's draws.

B samples, N text tokens, D text channels, C channels, h w latent size, S samples of the cache.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from opensana.device import format_bytes, free_memory
from opensana.errors import ConfigError
from opensana.features.latents import NULL
from opensana.train.engine.randomness import numpy_generator, seed_of, torch_generator
from opensana.train.transformer.batches import FlowBatch, Stream, draw_sigma

FREE_SHARE = 0.5
"""Of the free memory, at most; training needs the rest."""


@dataclass(frozen=True)
class Captions:
    """The captions of all samples on end, with what decides which one is drawn."""

    ids: np.ndarray
    starts: np.ndarray  # [S]
    last: np.ndarray  # [S], where the last caption of a sample is that can be drawn
    bounds: np.ndarray  # sample + the sum of its captions' chances so far: they ascend

    @classmethod
    def of(cls, stream: Stream) -> "Captions":
        ids, starts, last, bounds = [], [], [], []
        for index in range(len(stream.features)):
            sample = stream.features.sample(index)
            chances = stream.recipe.data.rule.probabilities(sample.scores)
            starts.append(len(ids))
            last.append(len(ids) + int(np.flatnonzero(chances)[-1]))
            bounds.append(index + np.cumsum(chances))
            ids.extend(sample.captions)
        first, final = np.asarray(starts), np.asarray(last)
        return cls(np.asarray(ids), first, final, np.concatenate(bounds))

    def drawn(self, samples: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """A caption [B] of each sample [B], by numbers [B] in [0, 1)."""
        place = np.searchsorted(self.bounds, samples + numbers, side="right")
        return self.ids[place.clip(self.starts[samples], self.last[samples])]


@dataclass(frozen=True)
class ResidentStream(Stream):
    """As `Stream`, with its batches on the device; `fixed_batches` are the loader's."""

    latents: tuple[Tensor, ...] = ()
    states: Tensor | None = None
    """[T, D] of all captions on end, those of the null caption last; float16."""
    captions: Captions | None = None

    @classmethod
    def of(cls, stream: Stream, device: torch.device) -> "ResidentStream":
        """The features of a stream, moved; ConfigError if they fill the device."""
        features = stream.features
        arrays = (*features.latents, features.texts.states)
        size = sum(array.nbytes for array in arrays)
        free = free_memory(device)
        if size > FREE_SHARE * free:
            raise ConfigError(
                f"resident features take {format_bytes(size)}, and {device.type} has "
                f"{format_bytes(free)} left; train with resident=false"
            )
        states = np.concatenate([features.texts.states, features.texts.null])
        known = {field.name: getattr(stream, field.name) for field in fields(Stream)}
        return cls(
            **known,
            latents=tuple(torch.from_numpy(np.array(x)).to(device) for x in features.latents),
            states=torch.from_numpy(states).to(device),
            captions=Captions.of(stream),
        )

    def batch(self, step: int, slots: range) -> FlowBatch:
        """The samples in these slots of the global batch: a function of seed, step and slot."""
        recipe, texts = self.recipe, self.features.texts
        assert self.states is not None and self.captions is not None
        device, own = self.states.device, slice(slots.start, slots.stop)
        samples = np.array([sample for _, sample in self.order(step)])
        draw = numpy_generator(recipe.seed, step, "resident")
        captions = self.captions.drawn(samples, draw.random(len(samples)))
        captions[draw.random(len(samples)) < recipe.data.dropout] = NULL
        samples, captions = samples[own], captions[own]

        # The null caption's id is -1: its states lie behind all others
        ends = np.append(texts.offsets[1:], len(self.states))
        starts = np.append(texts.offsets[:-1], texts.offsets[-1])[captions]
        lengths = ends[captions] - starts
        span = np.arange(lengths.max())
        mask = torch.from_numpy(span < lengths[:, None])
        rows = torch.from_numpy((starts[:, None] + span).clip(max=len(self.states) - 1))
        states = self.states[rows.to(device)].float() * mask.to(device)[..., None]

        bucket, place = self.features.index[samples].T
        latents = self.latents[bucket[0]][torch.from_numpy(place).to(device)].float()
        generator = torch.Generator(device).manual_seed(seed_of(recipe.seed, step, "resident"))
        repeat, count = recipe.data.repeat, recipe.batch
        shape = (count, repeat, *latents.shape[1:])
        noise = torch.randn(shape, device=device, generator=generator)[own].flatten(0, 1)
        level = torch_generator(recipe.seed, step, "resident timestep")
        sigma = draw_sigma(count * repeat, level, recipe.flow).view(count, repeat)[own].flatten()
        if recipe.data.text_noise:
            states = states + self._text_noise(generator, own, mask)
        names = [f"{s} (caption {c})" for s, c in zip(samples, captions, strict=True)]
        return FlowBatch(
            *(latents, states, mask, noise, sigma.to(device), names, samples.tolist()),
            weight=self.weight,
        )

    def _text_noise(self, generator: torch.Generator, own: slice, mask: Tensor) -> Tensor:
        """Noise [B, N, D] of up to so many deviations, zero where there is no token."""
        count, device = self.recipe.batch, generator.device
        _, deviation = self.features.texts.moments
        longest = int(
            np.diff(self.features.texts.offsets).max(initial=len(self.features.texts.null))
        )
        amount = torch.rand(count, 1, 1, device=device, generator=generator)[own]
        shape = (count, longest, len(deviation))
        drawn = torch.randn(shape, device=device, generator=generator)[own, : mask.shape[1]]
        scale = self.recipe.data.text_noise * amount * deviation.to(device)
        return scale * drawn * mask.to(device)[..., None]

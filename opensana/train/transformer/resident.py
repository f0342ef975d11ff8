"""Cached features in a device's memory, where batches are put together and noise is drawn.

A loader takes a fifth of a millisecond a sample, and a small network on a GPU less: it would be
waited for. Captions are drawn for the whole batch, as functions of the seed and the step alone, so
that slots of several processes or micro-batches are its parts; noise as `draws.py` says of devices.
These are not the draws of the loader on a CPU.

B samples, N text tokens, D text channels, C channels, h w latent size, S samples of the cache.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from opensana.device import format_bytes, free_memory, sent
from opensana.errors import ConfigError
from opensana.features.latents import NULL
from opensana.train.engine.randomness import numpy_generator
from opensana.train.transformer.batches import FlowBatch, Stream
from opensana.train.transformer.draws import BlockDraws

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
    def of(cls, stream: Stream) -> "ResidentStream":
        """The features of a stream, moved to its device; ConfigError if they fill it."""
        features, device = stream.features, stream.device
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
        device, own = self.device, slice(slots.start, slots.stop)
        _, samples = self.order.visits(step)
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
        states = self.states[sent(rows, device)].float() * sent(mask, device)[..., None]

        bucket, place = self.features.index[samples].T
        latents = self.latents[bucket[0]][sent(torch.from_numpy(place), device)].float()
        draws = BlockDraws(recipe, texts, device)
        noise, sigma, of_texts = draws(step, tuple(latents.shape[1:]), slots, mask)
        if of_texts is not None:
            states = states + of_texts
        names = [f"{s} (caption {c})" for s, c in zip(samples, captions, strict=True)]
        return FlowBatch(
            *(latents, states, mask, noise, sigma, names, samples.tolist()),
            weight=self.weight,
        )

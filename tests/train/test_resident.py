"""Batches that are put together on the device: the loader's samples, and draws of their own.

Also tests `train/transformer/resident.py`.
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensana.errors import ConfigError
from opensana.features.latents import NULL
from opensana.train.transformer import resident
from opensana.train.transformer.batches import Stream
from opensana.train.transformer.resident import ResidentStream
from opensana.train.transformer.task import train_transformer
from tests.train.conftest import BY_WEIGHT
from tests.train.reading import bits


@pytest.fixture
def data(features: Path) -> dict[str, Any]:
    return {"folder": str(features), **BY_WEIGHT}


def both(recipe: Any) -> tuple[Stream, ResidentStream]:
    stream = Stream.open(recipe)
    return stream, ResidentStream.of(stream)


def test_the_same_samples_with_their_own_captions(transformer_recipe, data):
    stream, moved = both(transformer_recipe(data={**data, "dropout": 0.0}))
    for step in range(6):
        one, other = stream.batch(step, range(4)), moved.batch(step, range(4))
        assert other.samples == one.samples and torch.equal(other.latents, one.latents)
        for index, name in enumerate(other.names):
            caption = int(name.split("caption ")[1].rstrip(")"))
            assert caption in stream.features.sample(other.samples[index]).captions
            states, mask = stream.features.texts.batch([caption])
            length = int(mask.sum())
            assert int(other.mask[index].sum()) == length
            assert torch.equal(other.states[index, :length], states[0, :length])
            assert not other.states[index, length:].any()


def test_captions_are_drawn_by_their_scores_and_dropped(transformer_recipe, data):
    """Three to one; a fifth of all is the null caption."""
    _, moved = both(transformer_recipe(batch=8, data={**data, "dropout": 0.2}))
    counts: Counter[str] = Counter()
    for step in range(400):
        for name in moved.batch(step, range(8)).names:
            sample, caption = name.rstrip(")").split(" (caption ")
            place = int(caption) - 2 * int(sample)
            counts["null" if int(caption) == NULL else f"caption {place}"] += 1
    total = counts.total()
    assert total == 3200
    assert counts["null"] / total == pytest.approx(0.2, abs=0.02)
    assert counts["caption 0"] / total == pytest.approx(0.6, abs=0.03)
    assert counts["caption 1"] / total == pytest.approx(0.2, abs=0.02)


def test_slots_are_parts_of_the_batch(transformer_recipe, data):
    _, moved = both(transformer_recipe(data={**data, "text_noise": 0.5, "repeat": 2}))
    whole = moved.batch(3, range(4))
    first, second = moved.batch(3, range(2)), moved.batch(3, range(2, 4))
    for name in ("latents", "noise", "sigma"):
        parts = torch.cat([getattr(first, name), getattr(second, name)])
        assert torch.equal(parts, getattr(whole, name))
    for part, rows in ((first, slice(0, 2)), (second, slice(2, 4))):
        length = part.mask.shape[1]
        assert torch.equal(part.states, whole.states[rows, :length])
    assert whole.noise.shape == (8, 4, 2, 2) and whole.repeat == 2
    assert not torch.equal(whole.noise, moved.batch(4, range(4)).noise)


def test_text_noise_has_the_deviation_of_the_channels(transformer_recipe, data):
    recipe = transformer_recipe(batch=8, data={**data, "dropout": 0.0, "text_noise": 0.5})
    stream, noisy = both(recipe)
    quiet = replace(noisy, recipe=transformer_recipe(batch=8, data={**data, "dropout": 0.0}))
    found = []
    for step in range(300):
        one, other = noisy.batch(step, range(8)), quiet.batch(step, range(8))
        assert one.names == other.names
        change = (one.states - other.states) / stream.features.texts.moments[1]
        assert not change[~one.mask].any()
        found.append(change[one.mask].square().mean())
    # The mean square of an amount that is uniform up to 1/2 is 1/12
    assert float(torch.stack(found).mean()) == pytest.approx(1 / 12, rel=0.1)


def test_resuming_is_exact(transformer_recipe, tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_transformer(transformer_recipe(run=str(whole), resident=True))
    train_transformer(transformer_recipe(run=str(parts), resident=True, steps=5))
    train_transformer(transformer_recipe(run=str(parts), resident=True))
    assert bits(whole) == bits(parts)


def test_features_that_fill_the_device_are_refused(transformer_recipe, monkeypatch):
    monkeypatch.setattr(resident, "free_memory", lambda _: 1000)
    with pytest.raises(ConfigError, match=r"take .*B, and cpu has .* left; train with resident"):
        both(transformer_recipe())

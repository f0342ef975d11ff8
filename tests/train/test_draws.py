"""What a device draws in blocks, and what a loader sends to it.

Also tests `train/transformer/draws.py` and `train/transformer/batches.py`.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opensana.train.transformer import draws
from opensana.train.transformer.batches import Stream
from opensana.train.transformer.draws import BlockDraws
from tests.launches import Launches
from tests.train.conftest import BY_WEIGHT

CPU, META = torch.device("cpu"), torch.device("meta")
SHAPE = (4, 2, 2)


@pytest.fixture
def drawing(transformer_recipe, features: Path, monkeypatch: pytest.MonkeyPatch) -> BlockDraws:
    """Of seven slots in blocks of three; two noises and a noisy text for each."""
    monkeypatch.setattr(draws, "BLOCK", 3)
    data = {"folder": str(features), **BY_WEIGHT, "text_noise": 0.5, "repeat": 2}
    recipe = transformer_recipe(batch=7, data=data)
    return BlockDraws(recipe, Stream.open(recipe).features.texts, CPU)


@pytest.mark.parametrize("slots", [range(3), range(2, 5), range(4, 7), range(6, 7)])
def test_slots_draw_the_same_in_any_part_of_the_batch(drawing: BlockDraws, slots: range) -> None:
    mask = torch.ones(7, 4, dtype=torch.bool)
    whole = drawing(5, SHAPE, range(7), mask)
    noise, sigma, of_text = drawing(5, SHAPE, slots, mask[:, :2][slots.start : slots.stop])
    pairs = slice(2 * slots.start, 2 * slots.stop)
    assert torch.equal(noise, whole[0][pairs]) and torch.equal(sigma, whole[1][pairs])
    assert of_text is not None and whole[2] is not None
    assert torch.equal(of_text, whole[2][slots.start : slots.stop, :2])


def test_steps_and_blocks_draw_anew(drawing: BlockDraws) -> None:
    mask = torch.ones(7, 4, dtype=torch.bool)
    one, other = (drawing(step, SHAPE, range(7), mask) for step in (5, 6))
    again = drawing(5, SHAPE, range(7), mask)
    noise, sigma, of_text = one
    assert noise.shape == (14, *SHAPE) and sigma.shape == (14,)
    assert of_text is not None and of_text.shape == (7, 4, 12)
    assert len(torch.cat([noise, other[0]]).flatten(1).unique(dim=0)) == 28
    assert all(torch.equal(*pair) for pair in zip(one[:2], again[:2], strict=True))
    assert again[2] is not None and torch.equal(of_text, again[2])
    assert noise.std() == pytest.approx(1, abs=0.2)


def test_features_travel_in_half_precision_and_the_host_goes_on(
    transformer_recipe, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are those of the CPU's batches; noise is drawn on the device."""
    data = {"folder": str(features), **BY_WEIGHT, "text_noise": 0.5, "repeat": 2}
    stream = Stream.open(transformer_recipe(data=data))
    here = stream.batch(3, range(4))
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(BlockDraws, "_generator", lambda *_: None)  # without numbers, none
    monkeypatch.setattr(
        "opensana.train.transformer.batches.sent",
        lambda values, device: seen.append(values) or values.to(device, non_blocking=True),
    )
    with Launches() as counted:
        there = replace(stream, device=META).batch(3, range(4))
    latents, states = seen
    assert latents.dtype == states.dtype == torch.float16
    assert torch.equal(latents.float(), here.latents)
    assert there.names == here.names and torch.equal(there.mask, here.mask)
    for name in ("latents", "states", "noise", "sigma"):
        one, other = getattr(there, name), getattr(here, name)
        assert one.device.type == "meta" and one.dtype == torch.float32
        assert one.shape == other.shape
    assert set(counted.uploads) == {"_to_copy in flight"} and not counted.host_reads
    of_noise = 4 * 8 + 4 * 12 + here.mask.numel()  # levels, deviations, and where there is text
    assert counted.uploaded == latents.nbytes + states.nbytes + of_noise

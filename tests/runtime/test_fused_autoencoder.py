"""A fused autoencoder: the plain one's numbers, names and bands, from half as many kernels.

Also tests `runtime/fused_resample.py`.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opensana.autoencoder import Autoencoder
from opensana.autoencoder.plan import decoder_chain, encoder_chain
from opensana.autoencoder.streaming import decode_bands, encode
from opensana.runtime.fused_autoencoder import fuse_autoencoder, is_fused
from opensana.runtime.placing import prepare_for_inference
from tests.autoencoder.test_parity import VARIANTS
from tests.autoencoder.test_streaming import build, noise, peak_of

pytestmark = pytest.mark.usefixtures("one_thread")


def fused(plain: Autoencoder) -> Autoencoder:
    other = deepcopy(plain)
    fuse_autoencoder(other)
    assert is_fused(other) and not is_fused(plain)
    return other


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@torch.inference_mode()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_numbers_are_the_plain_ones(name: str, batch: int) -> None:
    plain = build(name)
    other = fused(plain)
    pixels, latent = noise(batch, 3, 40, 56), noise(batch, 8, 5, 7)
    assert error(other.decode(latent), plain.decode(latent)) < 1e-6
    assert error(other.encode(pixels), plain.encode(pixels)) < 1e-6
    assert other.decode(latent[:, :, :1, :1]).shape == (batch, 3, 8, 8)


@torch.inference_mode()
def test_in_half_precision_it_is_as_near_to_the_truth() -> None:
    truth, plain = build("sana").double(), build("sana").bfloat16()
    other = fused(plain)
    latent, pixels = noise(1, 8, 6, 6), noise(1, 3, 48, 48)
    for name, x in (("decode", latent), ("encode", pixels)):
        expected = getattr(truth, name)(x.double())
        errors = [error(getattr(one, name)(x.bfloat16()), expected) for one in (other, plain)]
        assert errors[0] < 1.2 * errors[1]


@torch.inference_mode()
@pytest.mark.parametrize("name", ["sana", "lite"])
def test_in_bands_too(name: str) -> None:
    plain = build(name)
    other = fused(plain)
    latent, pixels = noise(1, 8, 8, 6), noise(1, 3, 64, 48)
    memory = decoder_chain(other, 1, 8, 6).least_memory
    bands = list(decode_bands(other, latent, memory=memory))
    assert len(bands) > 8
    assert error(torch.cat(bands, dim=2), plain.decode(latent)) < 1e-6
    memory = encoder_chain(other, 1, 64, 48).least_memory
    assert error(encode(other, pixels, memory=memory), plain.encode(pixels)) < 1e-6


@torch.inference_mode()
@pytest.mark.parametrize("name", VARIANTS)
def test_it_lives_in_what_the_plan_says(name: str) -> None:
    # The padding of a head is more than planned where it is half of the head.
    config = replace(VARIANTS[name], attention_head_dim=16)
    other = fused(Autoencoder(config).eval().requires_grad_(False))
    latent, pixels = noise(1, 8, 32, 6), noise(1, 3, 128, 48)
    runs: list[tuple[int, Callable[[], object]]] = [
        (decoder_chain(other, 1, 32, 6).one_band_memory, lambda: other.decoder(latent)),
        (encoder_chain(other, 1, 128, 48).one_band_memory, lambda: other.encoder(pixels)),
    ]
    for planned, run in runs:
        assert peak_of(run) < planned


def test_its_names_and_weights_are_the_plain_ones() -> None:
    plain = build("sana")
    expected, found = plain.state_dict(), fused(plain).state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_every_map_of_weights_is_channels_last() -> None:
    other = fused(build("sana"))
    wide = [x for x in (*other.parameters(), *other.buffers()) if x.ndim == 4]
    assert wide and all(x.is_contiguous(memory_format=torch.channels_last) for x in wide)


def test_a_cpu_keeps_the_plain_one() -> None:
    placed = prepare_for_inference(build("sana"), torch.device("cpu"), torch.float32)
    assert not is_fused(placed)

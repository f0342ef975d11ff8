"""Bands of rows give what the whole network gives, in the memory that was planned.

Also tests `autoencoder/bands.py` and `autoencoder/plan.py`.
"""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opensana.autoencoder import Autoencoder, streaming
from opensana.autoencoder.plan import Chain, decoder_chain, encoder_chain
from opensana.errors import ConfigError, RequestError
from tests.autoencoder.test_parity import VARIANTS, randomise, relative_error

FUSED = 3 * 32 * 32 * 4  # bytes of a block's projections joined, which no plan counts
SETTINGS = settings(max_examples=12, deadline=None, derandomize=True)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Autoencoder:
    return build(request.param)


@pytest.fixture(scope="module")
def sana() -> Autoencoder:
    return build("sana")


def build(name: str) -> Autoencoder:
    module = Autoencoder(VARIANTS[name]).eval().requires_grad_(False)
    randomise(module)
    return module


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def joined(chain: Chain, x: Tensor, heights: st.DataObject) -> Tensor:
    """The output of a chain whose passes have bands of any height, odd ones too."""
    rows, size = [], x.shape[2]
    for step in chain.passes:
        size = step.size(size)
        rows.append(heights.draw(st.integers(1, size)))
    return torch.cat(list(streaming.run(chain, x, rows)), dim=2)


@SETTINGS
@given(height=st.integers(1, 12), width=st.integers(1, 5), heights=st.data())
def test_decoding_in_bands_is_exact(
    model: Autoencoder, height: int, width: int, heights: st.DataObject
) -> None:
    latent = noise(1, 8, height, width)
    pixels = joined(decoder_chain(model, 1, height, width), latent, heights)
    assert relative_error(pixels, model.decoder(latent)) < 1e-5


@SETTINGS
@given(height=st.integers(1, 12), width=st.integers(1, 5), heights=st.data())
def test_encoding_in_bands_is_exact(
    model: Autoencoder, height: int, width: int, heights: st.DataObject
) -> None:
    pixels = noise(1, 3, 8 * height, 8 * width)
    latent = joined(encoder_chain(model, 1, 8 * height, 8 * width), pixels, heights)
    assert relative_error(latent, model.encoder(pixels)) < 1e-5


@torch.no_grad()
def test_a_batch_goes_one_by_one_and_scaled(model: Autoencoder) -> None:
    pixels = noise(2, 3, 48, 40)
    latent = model.encode(pixels)
    least = encoder_chain(model, 1, 48, 40).least_memory
    assert relative_error(streaming.encode(model, pixels, memory=least), latent) < 1e-5
    least = decoder_chain(model, 1, 6, 5).least_memory
    bands = streaming.decode(model, latent, memory=least)
    assert relative_error(bands, model.decode(latent)) < 1e-5


def test_inputs_stay_as_they_are(sana: Autoencoder) -> None:
    latent, pixels = noise(1, 8, 6, 5), noise(1, 3, 48, 40)
    streaming.decode(sana, latent, memory=2**30)
    streaming.encode(sana, pixels, memory=2**30)
    assert torch.equal(latent, noise(1, 8, 6, 5))
    assert torch.equal(pixels, noise(1, 3, 48, 40))


# ------------------------------------------------------------------ memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that live at once, and remembers the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        for taken in tree_leaves((args, kwargs)):
            if isinstance(taken, Tensor):  # a view of a weight is no new memory
                self.known.add(taken.untyped_storage().data_ptr())
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage.data_ptr(), storage.nbytes())

    def _free(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.now -= size


def peak_of(run: Callable[[], object]) -> int:
    with LiveBytes() as live:
        run()
    return live.peak


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("side", ["decoder", "encoder"])
def test_no_more_lives_than_planned(model: Autoencoder, side: str, share: float) -> None:
    if side == "decoder":
        chain, x = decoder_chain(model, 1, 16, 6), noise(1, 8, 16, 6)
    else:
        chain, x = encoder_chain(model, 1, 128, 48), noise(1, 3, 128, 48)
    memory = int(chain.least_memory + share * (chain.one_band_memory - chain.least_memory))
    plan = chain.plan(memory)
    assert chain.least_memory <= plan.memory <= memory
    peak = peak_of(lambda: [None for _ in streaming.run(chain, x, plan.rows)])
    assert 0.5 * plan.memory < peak < plan.memory + FUSED


def test_a_whole_decode_lives_in_what_is_said(model: Autoencoder) -> None:
    """And bands live in less, or they would be for nothing."""
    chain, latent = decoder_chain(model, 1, 32, 6), noise(1, 8, 32, 6)
    assert peak_of(lambda: model.decoder(latent)) < chain.one_band_memory
    assert 3 * chain.least_memory < chain.one_band_memory
    whole = chain.plan(chain.one_band_memory).rows
    assert whole[-1] == 256


def test_too_little_memory_says_how_much_is_needed(sana: Autoencoder) -> None:
    least = decoder_chain(sana, 1, 6, 5).least_memory
    with pytest.raises(RequestError, match=rf"at least {least / 1024:.1f} KiB beside the weights"):
        streaming.decode(sana, noise(1, 8, 6, 5), memory=least - 1)
    assert streaming.decode(sana, noise(1, 8, 6, 5), memory=least).shape == (1, 3, 48, 40)


def test_sizes_that_are_no_multiple_and_training_mode_are_refused(sana: Autoencoder) -> None:
    with pytest.raises(RequestError, match="multiples of 8"):
        streaming.encode(sana, noise(1, 3, 44, 40), memory=2**30)
    sana.train()
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        streaming.decode(sana, noise(1, 8, 6, 5), memory=2**30)
    sana.eval()

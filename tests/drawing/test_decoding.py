"""Latents to images: bands where memory is short, and the same picture either way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.autoencoder.plan import decoder_chain
from opensana.drawing import decoding
from opensana.drawing.decoding import band_memory, decode_images
from opensana.errors import ConfigError, NumericsError, RequestError
from opensana.pipeline import Sana
from tests import tiny

SIZE = (6, 3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sana() -> Sana:
    return tiny.sana(instruction="none")


def set_free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(decoding, "free_memory", lambda _: size)


def differ(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_small_pictures_are_decoded_at_once_without_a_word(sana: Sana) -> None:
    heard: list[str] = []
    assert band_memory(sana.autoencoder, (4, *SIZE), memory=None, notice=heard.append) is None
    assert not heard


def test_bands_give_the_same_pictures(sana: Sana) -> None:
    chain = decoder_chain(sana.autoencoder, 1, *SIZE)
    latent = torch.randn(2, 8, *SIZE, generator=torch.Generator().manual_seed(0))
    whole = decode_images(sana.autoencoder, latent, memory=None)
    bands = decode_images(sana.autoencoder, latent, memory=chain.least_memory)
    assert [image.size for image in bands] == [(96, 192)] * 2
    assert np.asarray(whole[0]).std() > 5
    assert max(map(differ, whole, bands)) <= 1  # a rounding on the other side


def test_short_memory_is_streamed_and_said(sana: Sana, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = decoder_chain(sana.autoencoder, 1, *SIZE)
    heard: list[str] = []
    set_free(monkeypatch, chain.one_band_memory)
    memory = band_memory(sana.autoencoder, (1, *SIZE), memory=None, notice=heard.append)
    assert memory is not None and memory == int(0.8 * chain.one_band_memory)
    [line] = heard
    assert f"in bands of {chain.plan(memory).rows[-1]} rows" in line
    set_free(monkeypatch, 2 * chain.one_band_memory)
    assert band_memory(sana.autoencoder, (1, *SIZE), memory=None, notice=heard.append) is None
    set_free(monkeypatch, 0)  # what counts as free may be too little for anything: single rows
    memory = band_memory(sana.autoencoder, (1, *SIZE), memory=None, notice=heard.append)
    assert memory == chain.least_memory


def test_a_batch_that_does_not_fit_goes_one_by_one(sana: Sana) -> None:
    whole = decoder_chain(sana.autoencoder, 1, *SIZE).one_band_memory
    heard: list[str] = []
    assert band_memory(sana.autoencoder, (1, *SIZE), memory=whole, notice=heard.append) is None
    assert band_memory(sana.autoencoder, (4, *SIZE), memory=whole, notice=heard.append) == whole
    assert "one picture at a time in bands of 192 rows" in heard[0]


def test_a_system_that_does_not_tell_limits_nothing(
    sana: Sana, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: torch.device) -> int:
        raise ConfigError("this system does not tell how much memory is free")

    monkeypatch.setattr(decoding, "free_memory", unknown)
    assert band_memory(sana.autoencoder, (1, *SIZE), memory=None, notice=pytest.fail) is None


def test_a_limit_is_checked_before_drawing_and_kept(sana: Sana, tmp_path: Path) -> None:
    folder = sana.save(tmp_path / "tiny")
    heard: list[str] = []
    request = {"prompt": "a cat", "width": 96, "height": 192, "steps": 1, "seed": 1}
    least = decoder_chain(sana.autoencoder, 1, *SIZE).least_memory
    [picture] = sana.generate(**request, notice=heard.append)
    assert not heard
    short = Sana.load(folder, device="cpu", memory=least)
    [bands] = short.generate(**request, notice=heard.append)
    assert len(heard) == 1
    assert differ(picture.image, bands.image) <= 1

    steps: list[int] = []
    none = Sana.load(folder, device="cpu", memory="1KiB")
    with pytest.raises(RequestError, match=r"1\.0 KiB of memory cannot hold"):
        none.generate(**request, on_step=lambda step, *_: steps.append(step))
    assert not steps
    with pytest.raises(ConfigError, match="no size of memory"):
        Sana.load(folder, memory="4")


def test_nan_in_a_band_is_an_error(sana: Sana) -> None:
    least = decoder_chain(sana.autoencoder, 1, *SIZE).least_memory
    latent = torch.zeros(1, 8, *SIZE)
    latent[0, 0, 0, 0] = float("nan")
    with pytest.raises(NumericsError, match="decoded picture"):
        decode_images(sana.autoencoder, latent, memory=least)

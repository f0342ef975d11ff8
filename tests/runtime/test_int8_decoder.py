"""A decoder in 8 bits: what is replaced, how near its pictures are, and that it chooses."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from opensana.autoencoder.blocks import ResBlock
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.resample import Upsample
from opensana.autoencoder.streaming import decode_bands
from opensana.drawing.decoding import decode_images
from opensana.files.user_cache import cache_folder
from opensana.layers.convolution import Conv3x3
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.pictures.pixels import from_levels
from opensana.pipeline import Sana
from opensana.runtime import int8_decoder
from opensana.runtime.int8_convolution import Int8Conv3x3
from opensana.runtime.int8_decoder import HalfConv3x3, decodes_in_8_bits, quantize_decoder
from tests import tiny
from tests.autoencoder.test_streaming import build

GROUNDS = [(255, 255, 255), (112, 48, 160), (240, 200, 40), (20, 90, 200)]
# Every channel of a colour may move by so many levels before an eye can tell flat grounds apart.
NOTICEABLE = 4


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised whatever this processor's speed."""
    monkeypatch.setattr(int8_decoder, "seconds", lambda run, device: 1.0)


def emoji() -> Autoencoder:
    return load_autoencoder(find_autoencoder("emoji-256")).float()


@pytest.fixture(scope="module")
def latents() -> Tensor:
    """Of four shapes on flat grounds."""
    levels = []
    for index, ground in enumerate(GROUNDS):
        image = Image.new("RGB", (256, 256), ground)
        draw = ImageDraw.Draw(image)
        draw.ellipse((60 + 9 * index, 50, 190, 200), fill=(220, 30, 40 + 50 * index))
        draw.rectangle((110, 20, 130, 120), fill=(30, 120, 40))
        levels.append(np.asarray(image))
    with torch.inference_mode():
        return emoji().encode(from_levels(np.stack(levels)).permute(0, 3, 1, 2))


def decibels(found: Tensor, expected: Tensor) -> list[float]:
    errors = (found.clamp(-1, 1) - expected.clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    return [10 * math.log10(4 / float(error)) for error in errors]


@torch.inference_mode()
@pytest.mark.parametrize("kernels", [None, cache_folder()], ids=["plain", "kernels"])
def test_pictures_are_40_decibels_from_float32_and_grounds_keep_their_colour(
    latents: Tensor, kernels: Path | None
) -> None:
    plain, model = emoji(), emoji()
    assert quantize_decoder(model, kernels) is None
    expected, found = plain.decode(latents), model.decode(latents)
    assert min(decibels(found, expected)) > 40
    corners = 127.5 * (found - expected)[:, :, :32, :32].mean(dim=(2, 3))
    assert corners.abs().max() < NOTICEABLE


@torch.inference_mode()
def test_a_picture_is_the_same_alone_and_in_a_batch(latents: Tensor) -> None:
    model = emoji()
    quantize_decoder(model)
    _, second, *_ = decode_images(model, latents, memory=None)
    [alone] = decode_images(model, latents[1:2], memory=None)
    assert np.array_equal(np.asarray(second), np.asarray(alone))


@torch.inference_mode()
def test_bands_are_as_near_to_float32_as_the_whole(latents: Tensor) -> None:
    plain, model = emoji(), emoji()
    quantize_decoder(model)
    one = latents[:1]
    least = decoder_chain(model, 1, 8, 8).least_memory
    bands = list(decode_bands(model, one, memory=2 * least))
    assert len(bands) > 1
    assert min(decibels(torch.cat(bands, dim=2), plain.decode(one))) > 40


@torch.inference_mode()
def test_inner_blocks_are_replaced_and_all_else_stays() -> None:
    plain = build("sana")
    model = copy.deepcopy(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_decoder, "NARROW", 1)
        quantize_decoder(model)
    assert decodes_in_8_bits(model) and not decodes_in_8_bits(plain)
    blocks = [block for block in model.decoder.modules() if isinstance(block, ResBlock)]
    assert blocks and all(isinstance(block.conv1, Int8Conv3x3) for block in blocks)
    doubling = [module for module in model.decoder.modules() if isinstance(module, Upsample)]
    wanted = HalfConv3x3 if torch.cpu._is_amx_tile_supported() else Conv3x3
    assert doubling and all(isinstance(module.conv, wanted) for module in doubling)
    assert type(model.decoder.conv_in) is type(plain.decoder.conv_in)
    assert not any(isinstance(layer, Int8Conv3x3) for layer in model.encoder.modules())
    latent = torch.randn(1, plain.latent_channels, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = plain.decode(latent)
    assert 0 < (model.decode(latent) - expected).norm() < 0.05 * expected.norm()


def test_narrow_blocks_stay_in_float32() -> None:
    model = emoji()
    quantize_decoder(model)
    widths = {
        isinstance(block.conv1, Int8Conv3x3): set[int]()
        for block in model.decoder.modules()
        if isinstance(block, ResBlock)
    }
    for block in model.decoder.modules():
        if isinstance(block, ResBlock):
            widths[isinstance(block.conv1, Int8Conv3x3)].add(block.conv1.in_channels)
    assert widths == {False: {16, 32}, True: {64, 128}}


def test_a_slower_decoder_is_not_used_and_the_line_says_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.020, 0.005])
    monkeypatch.setattr(int8_decoder, "seconds", lambda run, device: next(times))
    model = emoji()
    line = quantize_decoder(model)
    assert line is not None and "20.0 ms in 8 bits, 5.0 ms in float32" in line
    assert not decodes_in_8_bits(model)


@pytest.mark.filterwarnings("ignore:.* saves memory here, not time")
def test_w8a8_decodes_in_8_bits_and_saves_the_plain_autoencoder(tmp_path: Path) -> None:
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(int8_decoder, "NARROW", 1)
        folder = tiny.sana(instruction="none").save(tmp_path / "plain")
        sana = Sana.load(folder, device="cpu", quantize="w8a8")
        assert decodes_in_8_bits(sana.autoencoder)
        saved = sana.save(tmp_path / "saved")
    assert not decodes_in_8_bits(Sana.load(folder, device="cpu", quantize="w8").autoencoder)
    files = [part / "vae" / "diffusion_pytorch_model.safetensors" for part in (folder, saved)]
    before, after = map(load_file, files)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@torch.inference_mode()
def test_a_doubling_convolution_in_bfloat16_is_near_the_plain_one() -> None:
    torch.manual_seed(5)
    plain, x = Conv3x3(16, 24).requires_grad_(False), torch.randn(2, 16, 5, 7)
    half = HalfConv3x3(plain).float()
    for ours, exact in ((half(x), plain(x)), (half.doubled(x), plain.doubled(x))):
        assert ours.dtype == torch.float32
        assert (ours - exact).norm() < 0.005 * exact.norm()

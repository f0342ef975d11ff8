"""An autoencoder as it is placed on a GPU, its pixels as bytes, and its weights from their file."""

import numpy as np
import pytest
import torch

from benchmarks.gpu.measuring import relative
from opensana.autoencoder import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.streaming import decode
from opensana.errors import NumericsError
from opensana.models.load import Onto, load_autoencoder
from opensana.pictures.pixels import joined, to_images
from opensana.runtime.placing import prepare_for_inference
from opensana.runtime.tf32 import settle_float32
from tests import tiny
from tests.autoencoder.test_parity import VARIANTS, randomise

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


@torch.inference_mode()
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_is_that_of_a_cpu(name: str, device: torch.device) -> None:
    plain, other = (Autoencoder(VARIANTS[name]).eval().requires_grad_(False) for _ in range(2))
    randomise(plain)
    other.load_state_dict(plain.state_dict())
    settle_float32(device, full=True)
    prepare_for_inference(other, device, torch.float32)
    latent, pixels = torch.randn(2, 8, 5, 7), torch.randn(2, 3, 40, 56)
    expected = plain.decode(latent)
    assert relative(other.decode(latent.to(device)), expected) < 1e-5
    assert relative(other.encode(pixels.to(device)), plain.encode(pixels)) < 1e-5
    memory = decoder_chain(other, 1, 5, 7).least_memory
    assert relative(decode(other, latent.to(device), memory=memory), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_bytes_are_those_of_a_cpu(dtype: torch.dtype, device: torch.device) -> None:
    pixels = torch.randn(3, 3, 40, 56).to(dtype)
    expected = [np.asarray(image, int) for image in to_images(pixels.float())]
    ordered = pixels.to(device, memory_format=torch.channels_last)
    for there in (pixels.to(device), ordered):
        for found in (to_images(there), joined(there.split(9, dim=2))):
            apart = [np.abs(np.asarray(a, int) - b) for a, b in zip(found, expected, strict=True)]
            assert np.max(apart) <= 1 and np.mean(apart) < 1e-3
    pixels[1, 2, 3, 4] = torch.nan
    with pytest.raises(NumericsError):
        to_images(pixels.to(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_come_from_their_file(
    dtype: torch.dtype, device: torch.device, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path_factory.mktemp("tiny") / "tiny")
    found = load_autoencoder(folder, onto=Onto(device, dtype)).state_dict()
    for name, weight in load_autoencoder(folder).to(dtype).state_dict().items():
        assert found[name].device.type == device.type
        assert torch.equal(found[name].cpu(), weight)

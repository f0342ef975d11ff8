"""Previews: the best linear map from latents to small pictures."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from opensana.autoencoder.preview import Preview, PreviewFit
from opensana.errors import WeightsError
from opensana.weights.locate import PRETRAINED
from opensana.weights.safetensors import write_safetensors


def test_a_linear_picture_is_found_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    true = Preview(
        0.02 * torch.randn(3 * 16, 4, 3, 3, generator=generator),
        0.1 * torch.randn(3 * 16, generator=generator),
    )
    fit = PreviewFit(4, pixels=4)
    for latents in torch.randn(4, 2, 4, 6, 5, generator=generator):
        fit.add(latents, F.interpolate(true(latents), scale_factor=8))  # a picture 8 times as large
    found = fit.solve()
    assert found.pixels == 4
    latents = torch.randn(2, 4, 3, 7, generator=generator)
    torch.testing.assert_close(found(latents), true(latents), rtol=0, atol=1e-3)


def test_the_file_keeps_the_map_to_an_8_bit_level(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    made = Preview(torch.randn(192, 4, 3, 3, generator=generator) / 30, torch.zeros(192))
    made.write(tmp_path)
    found = Preview.read(tmp_path, channels=4)
    assert found is not None
    latents = torch.randn(1, 4, 3, 3, generator=generator)
    torch.testing.assert_close(found(latents), made(latents), rtol=0, atol=2 / 255)


def test_a_folder_without_the_file_has_none_and_a_wrong_file_is_named(tmp_path: Path) -> None:
    assert Preview.read(tmp_path, channels=4) is None
    Preview(torch.zeros(192, 4, 3, 3), torch.zeros(192)).write(tmp_path)
    with pytest.raises(WeightsError, match=r"no preview of an autoencoder with 32 channels.*4, 3"):
        Preview.read(tmp_path, channels=32)
    write_safetensors({"other": torch.zeros(3)}, tmp_path, name="preview")
    with pytest.raises(WeightsError, match=r"it holds.*other"):
        Preview.read(tmp_path, channels=4)


def test_emoji_256_brings_previews() -> None:
    found = Preview.read(PRETRAINED / "emoji-256" / "vae", channels=32)
    assert found is not None
    assert found(torch.zeros(1, 32, 8, 8)).shape == (1, 3, 64, 64)

"""The resizing of published protocols."""

import numpy as np
import pytest
import torch

from opensana.evaluate.benchmark.protocol import PROTOCOLS, clean, sana


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("shape", [(64, 64), (400, 300), (300, 400)])
def test_any_picture_becomes_inceptions_input(name: str, shape: tuple[int, int]) -> None:
    found = PROTOCOLS[name](picture(*shape), 64)
    assert found.shape == (3, 299, 299) and found.dtype == torch.float32
    assert -1 <= found.min() < found.max() <= 1


def test_levels_keep_their_scale() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    torch.testing.assert_close(sana(white, 64), torch.ones(3, 299, 299))
    assert clean(white, 64).unique().tolist() == [pytest.approx(127 / 128)]


def test_sana_cuts_the_centre_and_clean_the_whole() -> None:
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 255
    assert sana(wide, 64).min() > 0.999
    assert clean(wide, 64)[:, :, 0].max() == -1 and clean(wide, 64)[:, :, 150].min() > 0.9


def test_sana_enlarges_without_antialiasing_and_the_drawn_size_counts() -> None:
    noise = picture(598, 598)
    plain, first = sana(noise, 598), sana(noise, 64)
    assert plain.std() > 2 * first.std()
    assert torch.equal(clean(noise, 598), clean(noise, 64))

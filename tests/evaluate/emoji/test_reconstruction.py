"""Reconstruction of the emoji, against principal components and constant pictures.

Also tests `metrics/reconstruction.py`.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from opensana.datasets.emoji.dataset import EmojiData
from opensana.errors import NumericsError
from opensana.evaluate.emoji import reconstruction
from opensana.evaluate.emoji.reconstruction import (
    chosen,
    evaluate_reconstruction,
    from_patches,
    linear_reference,
    measure,
    to_patches,
)
from opensana.metrics.reconstruction import decibels, ssim


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def plain_ssim(first: np.ndarray, second: np.ndarray) -> float:
    """The formula, window by window, for one channel [H, W]."""
    place = np.arange(11) - 5
    line = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for top in range(first.shape[0] - 10):
        for left in range(first.shape[1] - 10):
            a, b = (x[top : top + 11, left : left + 11] for x in (first, second))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            both = (window * (a - mean_a) * (b - mean_b)).sum()
            light = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
            values.append(light * (2 * both + 9e-4) / (var_a + var_b + 9e-4))
    return float(np.mean(values))


def test_ssim_is_its_formula() -> None:
    first, second = noise(2, 1, 18, 15).double(), noise(2, 1, 18, 15, seed=1).double()
    second = 0.7 * first + 0.3 * second
    expected = [plain_ssim(a[0].numpy(), b[0].numpy()) for a, b in zip(first, second, strict=True)]
    assert ssim(first, second).tolist() == pytest.approx(expected, rel=1e-6)


def test_ssim_of_itself_is_one() -> None:
    picture = noise(1, 3, 32, 32)
    assert ssim(picture, picture).item() == pytest.approx(1, abs=1e-5)
    assert ssim(picture, 1 - picture).item() < 0.1


def test_decibels() -> None:
    assert decibels(0.01) == pytest.approx(20)
    assert decibels(0.0) == 100


def test_both_means_of_psnr() -> None:
    batch = np.full((2, 16, 16, 3), 100, dtype=np.uint8)

    def off(pixels: Tensor) -> Tensor:
        shift = torch.tensor([10, 40.0]).view(2, 1, 1, 1) / 127.5
        return pixels + shift

    figures = measure(off, [batch])
    errors = [(10 / 255) ** 2, (40 / 255) ** 2]
    assert figures.pictures == 2
    assert figures.psnr == pytest.approx(np.mean([-10 * math.log10(e) for e in errors]), abs=1e-3)
    assert figures.psnr_of_mean_error == pytest.approx(-10 * math.log10(np.mean(errors)), abs=1e-3)


def test_nan_is_an_error() -> None:
    with pytest.raises(NumericsError, match="NaN"):
        measure(lambda pixels: pixels * math.nan, [np.zeros((1, 16, 16, 3), dtype=np.uint8)])


def test_splits(data: EmojiData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "TRAIN_SAMPLE", 2)
    assert len(chosen(data, "train")) == 2
    assert len(chosen(data, "train", everything=True)) == 5
    assert [record.index for record in chosen(data, "held_out")] == [5]
    figures = evaluate_reconstruction(lambda pixels: pixels, data, split="held_out")
    assert figures.psnr == 100
    assert figures.ssim == pytest.approx(1, abs=1e-4)


def test_patches_go_there_and_back() -> None:
    pixels = noise(2, 3, 64, 96)
    assert to_patches(pixels).shape == (2, 6, 3 * 32 * 32)
    assert torch.equal(from_patches(to_patches(pixels), pixels.shape), pixels)


def test_principal_components_find_the_plane(
    data: EmojiData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "PATCH", 8)
    reconstruct = linear_reference(data, numbers=24)
    train = evaluate_reconstruction(reconstruct, data, split="train")
    held_out = evaluate_reconstruction(reconstruct, data, split="held_out")
    # Squares of five colours have few different patches; noise has many.
    assert train.psnr > 45
    assert held_out.psnr < 15

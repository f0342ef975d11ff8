"""What a device can do: known by its whole name and the number format, else measured."""

import pytest
import torch
from torch import Tensor

from opensana.models import flops
from opensana.models.flops import measured_peak
from opensana.train.recipe import ParallelRecipe
from opensana.train.workload import known_peak

CARD = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA A100-SXM4-40GB", 312, 19.5),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A100-PCIE-40GB", 312, 19.5),
        ("NVIDIA A100 80GB PCIe", 312, 19.5),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA L40S", 362, 91.6),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA GeForce RTX 4090", 165, 82.6),
        # Others with the same number in their names
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 0, 0),
        ("NVIDIA GeForce RTX 4090 D", 0, 0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 0, 0),
        ("NVIDIA H100 PCIe", 0, 0),
        ("NVIDIA H100 NVL", 0, 0),
        ("NVIDIA A100X", 0, 0),
        ("GRID A100-40C", 0, 0),
        ("Tesla T4", 0, 0),
        ("", 0, 0),
    ],
)
def test_a_device_is_known_by_its_whole_name(
    monkeypatch: pytest.MonkeyPatch, name: str, half: float, single: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak(ParallelRecipe(), CARD) == half * 1e12
    assert known_peak(ParallelRecipe(), CARD, torch.float32) == single * 1e12
    assert known_peak(ParallelRecipe(), CARD, torch.float16) == 0
    assert known_peak(ParallelRecipe(peak_tflops=2.0), CARD, torch.float32) == 2e12
    assert known_peak(ParallelRecipe(), torch.device("cpu")) == 0


def test_products_grow_until_they_outlast_their_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 1 TFLOPS whose launches take a millisecond, and one too fast to be slowed."""
    monkeypatch.setattr(flops, "_product_time", lambda d, t, side: 1e-3 + 2 * side**3 / 1e12)
    assert measured_peak(CARD, torch.float32) == pytest.approx(1e12, rel=0.1)
    sides: list[int] = []
    monkeypatch.setattr(flops, "_product_time", lambda d, t, side: sides.append(side) or 1e-6)
    assert measured_peak(CARD, torch.float32) == pytest.approx(2 * 16384**3 / 1e-6)
    assert sides == [256, 512, 1024, 2048, 4096, 8192, 16384]


def test_the_products_are_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    monkeypatch.setattr(flops, "LONG_PRODUCT", 0.0)
    multiply = Tensor.__matmul__
    monkeypatch.setattr(
        Tensor, "__matmul__", lambda one, other: found.extend((one, other)) or multiply(one, other)
    )
    before = torch.get_rng_state()
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e6
    assert torch.equal(torch.get_rng_state(), before), "a training's random numbers stay"
    assert all(part.std() > 0.5 for part in found)

"""Pixels become the same bytes on every device, and only what is a number becomes any."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opensana.device import to_host
from opensana.errors import NumericsError
from opensana.pictures.pixels import from_levels, joined, to_images, to_levels
from tests.launches import Launches


class OnGpu(Tensor):
    """Has numbers, and says that they are on a GPU."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.device("cuda:1")


def random(*shape: int) -> Tensor:
    return 0.6 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_makes_the_bytes_of_a_cpu(dtype: torch.dtype) -> None:
    every = from_levels(np.arange(256, dtype=np.uint8)).expand(1, 3, 2, 256)
    other = every.to(dtype).as_subclass(OnGpu)
    expected = to_levels(every.to(dtype))[1]
    assert torch.equal(to_levels(other)[1].as_subclass(Tensor), expected)
    pixels = random(2, 3, 40, 60).to(dtype)
    found, expected = to_levels(pixels.as_subclass(OnGpu)), to_levels(pixels)
    assert found[0] == expected[0] and found[1].shape == (2, 40, 60, 3)
    levels = found[1].as_subclass(Tensor)
    differ = (levels.int() - expected[1].int()).abs()
    assert differ.max() <= 1 and (differ > 0).float().mean() < 1e-3, "halves may go either way"


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_gpu_does_it_in_five_kernels_and_is_read_at_the_end(order: torch.memory_format) -> None:
    with torch.inference_mode(), Launches() as seen:
        pixels = torch.empty(2, 3, 8, 8, device="meta", dtype=torch.bfloat16)
        images = to_images(pixels.contiguous(memory_format=order))
        assert seen.count - seen.kernels["clone"] == 5
        assert seen.host_reads == ["cpu", "cpu"] and not seen.uploads
        assert len(images) == 2 and images[0].size == (8, 8)


def test_bands_are_the_whole() -> None:
    pixels = random(2, 3, 9, 5)
    whole, bands = to_images(pixels), joined(iter(pixels.split(4, dim=2)))
    assert [one.tobytes() for one in whole] == [one.tobytes() for one in bands]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [Tensor, OnGpu])
def test_what_is_no_number_is_an_error(
    bad: float, kind: type[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "opensana.pictures.pixels.to_host", lambda *all: [x.as_subclass(Tensor) for x in all]
    )
    pixels = random(1, 3, 9, 5)
    pixels[0, 1, 8, 4] = bad
    with pytest.raises(NumericsError, match="decoded picture"):
        joined(part.as_subclass(kind) for part in pixels.split(4, dim=2))


def test_cuda_is_waited_for_once_behind_all_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Copied(OnGpu):
        def to(self, device: Any, *, non_blocking: bool = False) -> Tensor:  # pyright: ignore
            assert device == "cpu" and non_blocking
            done.append("copy")
            return self.as_subclass(Tensor)

    def stream(device: torch.device) -> SimpleNamespace:
        assert device == torch.device("cuda:1")
        return SimpleNamespace(synchronize=lambda: done.append("wait"))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    first, second = random(3), random(2, 2)
    found = to_host(first.as_subclass(Copied), second.as_subclass(Copied))
    assert done == ["copy", "copy", "wait"]
    assert torch.equal(found[0], first) and torch.equal(found[1], second)

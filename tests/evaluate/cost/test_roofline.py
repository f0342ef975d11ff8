"""The least time of a device, by its data sheet and measured."""

import pytest
import torch

from opensana.errors import RequestError
from opensana.evaluate.cost.catalogue import PAINTERS
from opensana.evaluate.cost.roofline import BANDWIDTHS, Limits, bound, limits
from opensana.evaluate.cost.sheet import linear
from opensana.models.flops import PEAKS


def test_each_product_waits_for_what_is_slower() -> None:
    device = Limits("test", torch.bfloat16, peak=100.0, bandwidth=10.0)
    wide, thin = linear(1000, 1000, 1000), linear(1, 1000, 1000)
    arithmetic, memory = 2 * wide.macs / 100, 2 * thin.numbers / 10
    assert bound(wide, device).seconds == pytest.approx(arithmetic)
    assert bound(wide, device).waiting == 0
    assert bound(thin, device).seconds == pytest.approx(memory)
    assert bound(thin, device).waiting == 1
    both = bound(wide + thin, device)
    assert both.seconds == pytest.approx(arithmetic + memory)
    assert both.waiting == pytest.approx(memory / (arithmetic + memory))


def test_known_devices() -> None:
    assert set(BANDWIDTHS) == set(PEAKS)
    half, single = limits("A100"), limits("A100", "float32")
    assert (half.peak, half.dtype) == (312e12, torch.bfloat16)
    assert (single.peak, single.dtype) == (19.5e12, torch.float32)
    assert half.bandwidth == pytest.approx(2.039e12)


def test_a_picture_is_no_faster_than_the_printed_one_can_be() -> None:
    """The paper prints 0.9 s for Sana-0.6B at 1024 px on an A100: the bound lies below it."""
    assert 0.15 < bound(PAINTERS["sana-0.6b"].picture(1024), limits("A100")).seconds < 0.9


def test_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensana.evaluate.cost.roofline.COPIED", 1 << 22)
    found = limits("this", "float32")
    assert found.dtype == torch.float32
    assert 1e9 < found.bandwidth < 1e14 and 1e9 < found.peak < 1e16


def test_other_names_are_refused() -> None:
    with pytest.raises(RequestError, match=r"did you mean 'A100'\?.*there are this, A100"):
        limits("A10")

"""Fewer products, the same convolution: any size, any border, and the plain way where it is due.

Also tests `layers/winograd.py`.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from opensana.layers import convolution
from opensana.layers.convolution import Conv3x3, conv_of_doubled
from opensana.layers.winograd import winograd_conv3x3

SIDES = st.integers(1, 21)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(1, 2), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_winograd_is_the_convolution(
    height: int, width: int, batch: int, channels: int, out: int, biased: bool
) -> None:
    x, weight = numbers(batch, channels, height, width), numbers(out, channels, 3, 3, seed=1)
    bias = numbers(out, seed=2) if biased else None
    expected = F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(winograd_conv3x3(x, weight, bias), expected)
    single = winograd_conv3x3(x.float(), weight.float(), None if bias is None else bias.float())
    assert (single - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_winograd_in_several_bands_is_the_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensana.layers.winograd.BAND_BYTES", 1)
    x, weight = numbers(2, 3, 18, 7), numbers(4, 3, 3, 3, seed=1)
    torch.testing.assert_close(winograd_conv3x3(x, weight), F.conv2d(x, weight, padding=1))


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.integers(1, 2), st.booleans())
def test_four_small_kernels_are_the_convolution_of_a_doubled_map(
    height: int, width: int, batch: int, biased: bool
) -> None:
    x, weight = numbers(batch, 3, height, width), numbers(5, 3, 3, 3, seed=1)
    bias = numbers(5, seed=2) if biased else None
    doubled = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = F.conv2d(doubled, weight, bias, padding=1)
    torch.testing.assert_close(conv_of_doubled(x, weight, bias), expected)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fast ways that were taken."""
    taken: list[str] = []
    for name in ("winograd_conv3x3", "conv_of_doubled"):
        plain = getattr(convolution, name)

        def noted(*inputs: Tensor, name: str = name, plain=plain) -> Tensor:
            taken.append(name)
            return plain(*inputs)

        monkeypatch.setattr(convolution, name, noted)
    monkeypatch.setattr(convolution, "WIDE", 4)
    monkeypatch.setattr(convolution, "LARGE", 64)
    return taken


@torch.no_grad()
def test_the_fast_ways_are_taken_for_inference_in_float32(calls: list[str]) -> None:
    layer, x = Conv3x3(4, 4), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
    layer.doubled(x)
    assert calls == ["winograd_conv3x3", "conv_of_doubled"]


@pytest.mark.parametrize("why", ["gradients", "bfloat16", "small", "narrow"])
def test_the_plain_way_is_taken_elsewhere(calls: list[str], why: str) -> None:
    layer, x = Conv3x3(3 if why == "narrow" else 4, 4), torch.randn(1, 4, 8, 8)
    x = x[:, :3] if why == "narrow" else x[:, :, :4] if why == "small" else x
    dtype = torch.bfloat16 if why == "bfloat16" else torch.float32
    with torch.set_grad_enabled(why == "gradients"):
        layer.to(dtype)(x.to(dtype))
    assert calls == []


def test_gradients_flow_through_a_doubled_map(calls: list[str]) -> None:
    layer, x = Conv3x3(4, 2), torch.randn(1, 4, 5, 5, requires_grad=True)
    layer.doubled(x).sum().backward()
    assert calls == []
    assert x.grad is not None

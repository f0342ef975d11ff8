"""Weights in 4 bits: how near they are, with and without the branch, and what they take."""

import pytest
import torch
from torch import Tensor, nn

from opensana.layers.int4 import GROUP, Int4Linear, Int4Pointwise, principal, quantised
from opensana.layers.weight_only import plain_weight


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def layer_with_outliers() -> nn.Linear:
    """Random, with a few directions that are far larger than the rest, as trained layers have."""
    torch.manual_seed(0)
    plain = nn.Linear(128, 96)
    with torch.no_grad():
        plain.weight.add_(torch.randn(96, 4) @ torch.randn(4, 128) / 2)
    return plain


def test_a_value_is_off_by_half_a_step_of_its_group_at_most() -> None:
    plain = nn.Linear(3 * GROUP, 7)
    layer = Int4Linear.of(plain, rank=0)
    step = layer.weight_scale.float().repeat_interleave(GROUP, dim=1)
    error = (layer.widened(slice(None), torch.float32) - plain.weight).abs()
    assert (error <= 0.51 * step + 1e-3 * plain.weight.abs()).all()


@torch.no_grad()
def test_the_branch_takes_what_is_alike_in_many_channels() -> None:
    plain, x = layer_with_outliers(), torch.randn(2, 5, 128)
    without, with_branch = (Int4Linear.of(plain, rank=rank)(x) for rank in (0, 8))
    assert relative(without, plain(x)) < 0.15
    assert relative(with_branch, plain(x)) < 0.6 * relative(without, plain(x))


@pytest.mark.parametrize("channels", [8, GROUP, 100])
def test_any_number_of_channels_is_stored_in_half_the_bytes(channels: int) -> None:
    plain, x = nn.Linear(channels, 6, bias=False), torch.randn(3, channels)
    layer = Int4Linear.of(plain, rank=0)
    groups = -(-channels // GROUP)
    assert layer.weight.shape == (6, groups * GROUP // 2) and layer.weight.dtype == torch.uint8
    assert layer(x).shape == (3, 6)
    torch.testing.assert_close(layer(x), x @ plain_weight(layer).t())


def test_a_pointwise_convolution_keeps_its_maps() -> None:
    plain, x = nn.Conv2d(8, 6, 1), torch.randn(2, 8, 3, 5)
    with torch.no_grad():
        assert relative(Int4Pointwise.of(plain)(x), plain(x)) < 0.1


def test_constant_groups_and_zeros_are_exact() -> None:
    for value in (0.0, 0.5, -2.0):
        packed, scale, minimum = quantised(torch.full((2, GROUP), value))
        assert torch.equal(packed, torch.zeros_like(packed))
        assert torch.equal(-minimum.float(), torch.full((2, 1), value))
        assert scale.isfinite().all()


def test_a_state_dict_fills_an_empty_layer_and_formats_leave_it_alone() -> None:
    plain, x = nn.Linear(70, 6), torch.randn(2, 70)
    layer = Int4Linear.of(plain, rank=4)
    with torch.device("meta"):
        other = Int4Linear.of(nn.Linear(70, 6), rank=4)
    other.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(other(x), layer(x))
    half = layer.to(torch.bfloat16)
    assert half.weight_scale.dtype == torch.float16 and half.weight.dtype == torch.uint8


def test_the_principal_product_is_the_nearest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 3) @ torch.randn(3, 50) + 0.01 * torch.randn(40, 50)
    up, down = principal(weight, 3, start=torch.zeros(3, 50))
    u, s, v = torch.linalg.svd(weight)
    best = (u[:, :3] * s[:3]) @ v[:3]
    assert relative(up @ down, best) < 1e-3

"""3x3 convolutions of 8-bit maps: near float32, a scale for each picture."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opensana.files.user_cache import cache_folder
from opensana.layers.convolution import Conv3x3
from opensana.layers.norm import RMSNorm2d
from opensana.runtime.int8_convolution import CompiledMapOperations, Int8Conv3x3, MapOperations

BFLOAT16 = 2**-8
"""Relative, where a processor's convolutions come in it."""


@pytest.fixture(params=["plain", "compiled"])
def operations(request: pytest.FixtureRequest) -> MapOperations:
    return MapOperations() if request.param == "plain" else CompiledMapOperations(cache_folder())


def layer_and_maps(batch: int = 2) -> tuple[Conv3x3, Tensor]:
    torch.manual_seed(4)
    return Conv3x3(24, 40).requires_grad_(False), torch.randn(batch, 24, 9, 11)


@torch.inference_mode()
def test_it_is_the_convolution_of_the_rounded_map_and_weight(operations: MapOperations) -> None:
    plain, x = layer_and_maps()
    layer = Int8Conv3x3(plain, operations)
    scale = x.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    exact = F.conv2d((x / scale).round() * scale, layer.weight, plain.bias, padding=1)
    torch.testing.assert_close(layer(x).float(), exact, rtol=BFLOAT16, atol=1e-4)
    assert (layer(x) - plain(x)).norm() < 0.015 * plain(x).norm()


@torch.inference_mode()
def test_the_activation_is_applied_on_the_way_out(operations: MapOperations) -> None:
    plain, x = layer_and_maps()
    bare = Int8Conv3x3(plain, operations)
    for then, function in (("swish", F.silu), ("relu", F.relu)):
        layer = Int8Conv3x3(plain, operations, then=then)
        expected = function(bare(x).float())
        torch.testing.assert_close(layer(x).float(), expected, rtol=2 * BFLOAT16, atol=1e-2)


@torch.inference_mode()
def test_a_picture_is_the_same_in_any_company_and_at_any_size(operations: MapOperations) -> None:
    plain, x = layer_and_maps()
    layer = Int8Conv3x3(plain, operations)
    alone = layer(x[:1])
    assert torch.equal(layer(torch.cat([x[:1], 50 * x[1:]]))[:1], alone)
    layer(F.pad(x, (3, 3, 3, 3)))  # packed anew
    assert torch.equal(layer(x[:1]), alone)


@torch.inference_mode()
def test_what_is_not_finite_stays_visible(operations: MapOperations) -> None:
    plain, x = layer_and_maps()
    for bad in (float("nan"), float("inf")):
        x[0, 3, 4, 5] = bad
        assert not Int8Conv3x3(plain, operations)(x[:1]).isfinite().any()
    zeros = Int8Conv3x3(plain, operations)(torch.zeros(1, 24, 4, 4))
    expected = plain(torch.zeros(1, 24, 4, 4))
    torch.testing.assert_close(zeros.float(), expected, rtol=BFLOAT16, atol=1e-6)


def test_both_operationss_are_equal(tmp_path: Path) -> None:
    ours, compiled = MapOperations(), CompiledMapOperations(cache_folder())
    x = torch.randn(70_001, generator=torch.Generator().manual_seed(1))
    assert ours.scale(x) == pytest.approx(compiled.scale(x), rel=1e-6)
    scale = ours.scale(x)
    steps = (ours.round(x, scale).int() - compiled.round(x, scale).int()).abs()
    assert steps.max() <= 1 and steps.float().mean() < 1e-3


def test_a_gradient_is_refused() -> None:
    plain, x = layer_and_maps()
    with pytest.raises(RuntimeError, match="no gradient"):
        Int8Conv3x3(plain, MapOperations())(x.requires_grad_())


@torch.inference_mode()
def test_the_norm_and_residual_are_those_of_the_layers() -> None:
    compiled = CompiledMapOperations(cache_folder())
    norm = RMSNorm2d(24)
    norm.weight.copy_(torch.rand(24))
    norm.bias.copy_(torch.rand(24))
    for dtype in (torch.float32, torch.bfloat16):
        x, branch = torch.randn(2, 24, 5, 7), torch.randn(2, 24, 5, 7).to(dtype)
        expected = x + norm(branch.float())
        torch.testing.assert_close(compiled.add_normed(x, branch, norm), expected)

"""fp8 layers: as near as four bits are, the emulated product's numbers, bytes that stay bytes."""

import pytest
import torch
from torch import Tensor, nn

from opensana.layers.weight_only import plain_weight
from opensana.runtime.float8 import FORMAT, MOST, Float8Linear, Float8Pointwise, multiply, quantised
from tests.launches import Launches


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def test_numbers_keep_four_significant_bits_and_none_overflows() -> None:
    x = numbers(3, 5, 40) * torch.logspace(-6, 6, 15).view(3, 5, 1)
    values, scale = quantised(x)
    assert values.dtype == FORMAT and scale.shape == (3, 5, 1)
    meant = values.float() * scale
    smallest = scale * 2**-9  # below it steps are equal
    assert ((meant - x).abs() <= x.abs() * 2**-4 + smallest / 2).all()
    assert values.float().abs().amax(-1).eq(MOST).all(), "the whole range is used, and no NaN"
    assert not quantised(torch.zeros(2, 8))[0].float().any()
    assert quantised(torch.tensor([[1.0, torch.nan]]))[1].isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_a_product_is_that_of_the_emulated_numbers(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 48, bias=bias)
    layer, x = Float8Linear.of(plain), numbers(2, 7, 64)
    values, scale = quantised(x)
    weight = layer.weight.view(FORMAT).double()
    exact = (values.double() @ weight.t()) * scale * layer.weight_scale[:, 0]
    exact = exact + plain.bias if bias else exact
    assert relative(layer(x), exact) < 1e-6
    assert layer(x[0, 0]).shape == (48,)
    half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16 and relative(half, exact) < 0.02


@torch.no_grad()
def test_a_layer_is_within_four_percent_and_large_channels_do_not_drown_the_rest() -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(256, 96), numbers(64, 256)
    layer = Float8Linear.of(plain)
    assert relative(layer(x), plain(x)) < 0.04
    rest = x.clone()
    rest[:, 3] = 0
    x[:, 3] *= 100
    both = [multiply(part, layer.weight, layer.weight_scale) for part in (x, rest)]
    large = x[:, 3:4] @ plain_weight(layer)[:, 3:4].t()
    assert relative(both[0] - large, both[1]) < 0.15, "int8 is off by more than the rest is long"


@torch.no_grad()
def test_bytes_stay_bytes_whatever_a_module_is_brought_to() -> None:
    layer = Float8Pointwise.of(nn.Conv2d(32, 16, 1))
    before, x = {k: v.clone() for k, v in layer.state_dict().items()}, numbers(2, 32, 3, 5)
    expected = layer(x)
    layer = layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.uint8 and layer.weight_scale.dtype == torch.float32
    assert torch.equal(layer.weight, before["weight"])
    assert relative(layer(x.bfloat16()), expected) < 0.02 and expected.shape == (2, 16, 3, 5)
    with pytest.raises(RuntimeError, match="train the plain model"):
        layer(x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_become_8_bits_in_five_kernels(dtype: torch.dtype) -> None:
    with Launches() as seen:
        quantised(torch.empty(2, 8, 32, device="meta", dtype=dtype))
    assert seen.count == 5
    map_like = torch.empty(2, 32, 8, device="meta", dtype=dtype).transpose(1, 2)
    assert quantised(map_like)[0].is_contiguous(), "_scaled_mm takes rows"

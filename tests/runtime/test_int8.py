"""w8a8 layers and blocks: as near as 8 bits are, the same in C++, and told apart from plain ones.

Also tests `runtime/int8_block.py` and `runtime/int8_kernels.py`.
"""

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn

from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.norm import RMSNorm
from opensana.layers.weight_only import plain_weight
from opensana.runtime import int8 as module
from opensana.runtime.int8 import (
    FINER,
    ZERO,
    Int8Linear,
    Int8Pointwise,
    Rows,
    int_mm,
    multiply,
    quantised,
    signed,
)
from opensana.runtime.int8_block import PlainOperations
from opensana.runtime.int8_kernels import CompiledOperations
from opensana.runtime.kernels import COMPILERS
from tests.launches import Launches

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here"
)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def meant(rows: Rows, zero: int = ZERO) -> Tensor:
    """The tokens that rows stand for."""
    steps = rows.values.float() - zero
    if steps.ndim > rows.scale.ndim:
        steps = steps[0] + steps[1] / FINER
    return steps * rows.scale


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledOperations:
    return CompiledOperations(tmp_path_factory.mktemp("kernels"))


# ------------------------------------------------------------------ rows and layers


@pytest.mark.parametrize("twice", [False, True])
def test_a_token_is_off_by_half_a_step_at_most(twice: bool) -> None:
    x = numbers(3, 5, 40) * torch.logspace(-6, 6, 15).view(3, 5, 1)
    rows = quantised(x, twice=twice)
    step = rows.scale / FINER if twice else rows.scale
    assert ((meant(rows) - x).abs() <= 0.51 * step + 1e-6 * x.abs()).all()
    assert torch.equal(meant(quantised(torch.zeros(2, 8), twice=twice)), torch.zeros(2, 8))


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_within_one_percent_and_a_half(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(256, 96, bias=bias)
    layer = Int8Linear.of(plain)
    for x in (numbers(2, 7, 256), numbers(256), numbers(1, 256)):
        assert layer(x).shape == plain(x).shape
        assert relative(layer(x), plain(x)) < 0.015


@torch.no_grad()
def test_two_numbers_a_channel_leave_the_error_of_the_weights_alone() -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(64, 48), numbers(6, 64)
    x[:, 3] *= 300  # one channel far larger than all others
    layer = Int8Linear.of(plain)
    exact = x @ plain_weight(layer).t() + plain.bias
    once = relative(layer(x) - exact, plain(x))
    layer.twice = True
    assert relative(layer(x), exact) < 1e-4 < once


@torch.no_grad()
def test_a_pointwise_convolution_keeps_its_maps_and_numbers_their_format() -> None:
    plain, x = nn.Conv2d(32, 24, 1), numbers(2, 32, 3, 5)
    layer = Int8Pointwise.of(plain)
    assert layer(x).shape == (2, 24, 3, 5)
    assert relative(layer(x), plain(x)) < 0.02
    layer = layer.to(torch.bfloat16)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.weight_scale.dtype == torch.float32


def test_the_weight_is_kept_once_and_saved_as_it_was() -> None:
    layer = Int8Linear.of(nn.Linear(24, 40))
    before, weight = copy.deepcopy(layer.state_dict()), plain_weight(layer)
    layer(numbers(2, 24))
    assert layer.weight.numel() == 0
    after = layer.state_dict()
    assert set(after) == set(before) == {"weight", "weight_scale", "bias"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert torch.equal(plain_weight(layer), weight)


def test_there_is_no_gradient() -> None:
    with pytest.raises(RuntimeError, match="train the plain model"):
        Int8Linear.of(nn.Linear(8, 6))(torch.randn(2, 8, requires_grad=True))


# ------------------------------------------------------------------ as a GPU multiplies


def test_both_products_sum_the_same_whole_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 17, 40):
        values = torch.randint(-127, 128, (rows, 64), dtype=torch.int8, generator=generator)
        weight = torch.randint(-127, 128, (48, 64), dtype=torch.int8, generator=generator)
        layer = Int8Linear(weight, torch.ones(48, 1))
        unsigned = (values.int() + ZERO).to(torch.uint8)
        found = int_mm(values, weight.t())
        assert found.dtype == torch.int32 and found.shape == (rows, 48)
        assert torch.equal(found, values.int() @ weight.t().int())
        assert torch.equal(layer.product(Rows(unsigned, torch.ones(rows, 1))), found.float())


@pytest.mark.parametrize("twice", [False, True])
def test_signed_rows_are_the_unsigned_ones_but_for_ties(twice: bool) -> None:
    x = numbers(64, 256) * torch.logspace(-6, 6, 64)[:, None]
    found, expected = signed(x, twice=twice), quantised(x, twice=twice)
    assert torch.equal(found.scale, expected.scale)
    apart = found.values.int() - (expected.values.int() - ZERO)
    assert apart.abs().max() <= 1 or twice
    assert (apart != 0).float().mean() < 1e-4
    step = found.scale / FINER if twice else found.scale
    assert ((meant(found, zero=0) - x).abs() <= 0.51 * step + 1e-6 * x.abs()).all()


@torch.no_grad()
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_gpu_s_product_is_that_of_the_layer(
    bias: bool, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layer, x = Int8Linear.of(nn.Linear(64, 48, bias=bias)), numbers(2, 70, 64)
    layer.twice = twice
    given = layer.weight.clone(), layer.weight_scale, layer.bias
    expected = layer(x)
    whole = multiply(x, *given, twice=twice)
    assert whole.shape == (2, 70, 48) and relative(whole, expected) < 1e-5
    assert relative(multiply(x.bfloat16(), *given, twice=twice), expected) < 0.02
    monkeypatch.setattr(module, "PRODUCTS_AT_ONCE", 48 * 50)
    assert relative(multiply(x, *given, twice=twice), whole) < 1e-6, "in parts of 50 rows"


@pytest.mark.parametrize(("twice", "kernels"), [(False, 6), (True, 10)])
def test_tokens_become_8_bits_in_few_kernels(twice: bool, kernels: int) -> None:
    """They had been 11 and 15."""
    with Launches() as seen:
        signed(torch.empty(2, 8, 32, device="meta", dtype=torch.bfloat16), twice=twice)
    assert seen.count == kernels


# ------------------------------------------------------------------ between the products, in C++


def check(found: Rows, expected: Rows) -> None:
    """Equal rows but for numbers that lie between two steps, and the product's bfloat16."""
    assert found.values.shape == expected.values.shape
    torch.testing.assert_close(found.scale, expected.scale, rtol=0.02, atol=1e-7)
    step = expected.scale if found.values.ndim == found.scale.ndim else expected.scale / 2
    error = (meant(found) - meant(expected)).abs()
    assert (error <= 1.01 * step + 0.02 * meant(expected).abs()).all()
    assert relative(meant(found), meant(expected)) < 0.02


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("channels", [16, 24, 70])
@pytest.mark.parametrize("affine", [False, True])
def test_rows_and_modulated_rows_are_those_of_torch(
    compiled: CompiledOperations, channels: int, affine: bool
) -> None:
    norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=affine)
    if affine:
        norm.weight.copy_(numbers(channels, seed=4))
        norm.bias.copy_(numbers(channels, seed=5))
    tokens, shift, scale = numbers(2, 6, channels), numbers(2, 1, channels), numbers(2, 1, channels)
    for shifts in ((shift, scale), (shift[:1], scale[:1])):
        check(
            compiled.modulated(tokens, norm, *shifts),
            PlainOperations().modulated(tokens, norm, *shifts),
        )
    check(compiled.quantised(tokens[:, ::2]), quantised(tokens[:, ::2]))


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize(("heads", "size"), [(2, 8), (3, 32), (1, 21), (2, 40)])
@pytest.mark.parametrize("normed", [False, True])
def test_attended_rows_are_those_of_torch(
    compiled: CompiledOperations, heads: int, size: int, normed: bool
) -> None:
    channels = heads * size
    q, k, v = (numbers(2, 9, channels, seed=s).to(compiled.product_dtype) for s in range(3))
    scale = numbers(2, 9, 1, seed=3).abs() + 0.1
    norms: tuple[nn.Module, nn.Module] = (nn.Identity(), nn.Identity())
    if normed:
        norms = (RMSNorm(channels), RMSNorm(channels))
        for norm in norms:
            norm.weight.add_(numbers(channels, seed=6) / 2)
    found = compiled.attended(q, k, v, scale, norms, heads)
    plain = [(x.float() * scale) for x in (q, k, v)]
    plain = [norms[0](plain[0]), norms[1](plain[1]), plain[2]]
    wide = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in plain)
    check(found, quantised(relu_linear_attention(*wide).transpose(1, 2).flatten(2)))


@needs_compiler
@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (7, 5)])
@pytest.mark.parametrize("bias", [False, True])
def test_mixed_rows_are_those_of_torch(
    compiled: CompiledOperations, grid: tuple[int, int], bias: bool, threads: int
) -> None:
    hidden, places = 20, grid[0] * grid[1]
    depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
    product = numbers(3, places, 2 * hidden).to(compiled.product_dtype)
    scale, shift = numbers(3, places, 1, seed=1).abs(), numbers(2 * hidden) if bias else None
    plain = PlainOperations()
    plain.inner_dtype = torch.float32
    expected = plain.mixed(product.float(), scale, shift, depthwise, grid)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = compiled.mixed(product, scale, shift, depthwise, grid)
    finally:
        torch.set_num_threads(before)
    assert relative(meant(found), meant(expected)) < 1e-3
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-3, atol=1e-6)


@needs_compiler
@torch.no_grad()
def test_added_products_are_those_of_torch(compiled: CompiledOperations) -> None:
    tokens, product = numbers(2, 5, 24), numbers(2, 5, 24, seed=1).to(compiled.product_dtype)
    scale, gate, bias = numbers(2, 5, 1, seed=2), numbers(2, 1, 24, seed=3), numbers(24, seed=4)
    for shift in (None, bias):
        found = compiled.added(tokens, product, scale, shift, gate)
        expected = PlainOperations().added(tokens, product.float(), scale, shift, gate)
        torch.testing.assert_close(found, expected)

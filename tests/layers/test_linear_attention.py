"""Linear attention equals its explicit quadratic form, and is exact in half precision's range.

Also tests `layers/precision.py`.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opensana.layers import attend, attention_state, relu_linear_attention

ROUNDED = 0.0017
"""What rounding the result to bfloat16 costs, relative; with sums in bfloat16 it is 0.0035."""


def quadratic(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The N x N table, each row divided by its sum."""
    scores = torch.relu(query) @ torch.relu(key).transpose(-1, -2)
    return scores @ value / (scores.sum(dim=-1, keepdim=True) + 1e-15)


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(1, 70), heads=st.integers(1, 3), width=st.sampled_from([4, 32]))
def test_equals_the_quadratic_form(tokens: int, heads: int, width: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    shape = (3, 2, heads, tokens, width)
    query, key, value = torch.randn(shape, generator=generator, dtype=torch.float64).float()
    expected = quadratic(query.double(), key.double(), value.double())
    assert torch.allclose(
        relu_linear_attention(query, key, value).double(), expected, rtol=1e-4, atol=1e-5
    )


def test_a_query_without_a_match_gives_zero() -> None:
    nothing = -torch.ones(1, 1, 5, 4)
    out = relu_linear_attention(nothing, torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4))
    assert torch.equal(out, torch.zeros_like(out))


def test_sums_that_overflow_half_precision_stay_exact() -> None:
    query = key = torch.full((1, 1, 4096, 32), 8.0, dtype=torch.float16)
    value = torch.full((1, 1, 4096, 32), 3.0, dtype=torch.float16)
    out = relu_linear_attention(query, key, value)
    assert out.dtype == torch.float16
    assert torch.equal(out, value)


def heads(count: int = 3) -> list[Tensor]:
    """Queries, keys and values as a training's projections make them under autocast."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 1024, 32, generator=generator).bfloat16() for _ in range(count)]


def halves(*parts: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Each half of the tokens of all parts."""
    return zip(*(part.chunk(2, dim=-2) for part in parts), strict=True)


def test_autocast_leaves_the_sums_in_float32() -> None:
    query, key, value = (part.requires_grad_() for part in heads())
    exact = quadratic(query.double(), key.double(), value.double())
    with torch.autocast("cpu", torch.bfloat16):
        out = relu_linear_attention(query, key, value)
        assert (query @ key.mT).dtype == torch.bfloat16, "it goes on for the others"
    assert out.dtype == torch.bfloat16
    assert (out - exact).norm() < 1.05 * ROUNDED * exact.norm()
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = torch.autograd.grad(out, (query, key, value), direction)
    expected = torch.autograd.grad(exact, (query, key, value), direction.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1.05 * ROUNDED * theirs.norm()


def test_sums_of_parts_stay_in_float32_under_autocast() -> None:
    query, key, value = heads()
    with torch.autocast("cpu", torch.bfloat16):
        parts = [
            attention_state(k, v)
            for k, v in zip(key.split(512, 2), value.split(512, 2), strict=True)
        ]
        state = parts[0] + parts[1]
        out = attend(query, state)
    assert state.values.dtype == state.keys.dtype == out.dtype == torch.float32
    exact = quadratic(query.double(), key.double(), value.double())
    assert (out - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_derivatives_under_autocast_are_those_of_the_exact_form() -> None:
    inputs, directions = heads(), heads(6)[3:]
    with torch.autocast("cpu", torch.bfloat16):
        found: Any = torch.func.jvp(relu_linear_attention, tuple(inputs), tuple(directions))
    wide = (tuple(part.double() for part in parts) for parts in (inputs, directions))
    both: Any = torch.func.jvp(quadratic, *wide)
    (out, slope), (exact, expected) = found, both
    assert out.dtype == slope.dtype == torch.bfloat16
    assert (out - exact).norm() < 1.05 * ROUNDED * exact.norm()
    assert (slope - expected).norm() < 1.05 * ROUNDED * expected.norm()


def test_shapes_alone_are_enough() -> None:
    parts = (part.to("meta") for part in heads())
    with torch.autocast("cpu", torch.bfloat16):
        assert relu_linear_attention(*parts).shape == (2, 4, 1024, 32)

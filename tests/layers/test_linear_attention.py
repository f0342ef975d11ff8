"""Linear attention equals its explicit quadratic form, and is exact in half precision's range."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opensana.layers import relu_linear_attention


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

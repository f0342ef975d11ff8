"""The gate of the Mix-FFN and its own backward pass."""

import pytest
import torch
from torch.nn import functional as F

from opensana.layers.mix_ffn import MixFFN, gated

FORWARD = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
"""Said by torch's own forward derivatives."""


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@FORWARD
def test_the_gradients_are_those_of_the_formula() -> None:
    x = maps(2, 8, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    assert torch.autograd.gradcheck(gated, (x,), check_forward_ad=True)


def test_with_and_without_gradients_it_is_the_same() -> None:
    x = maps(2, 8, 3, 4)
    hidden, gate = x.chunk(2, dim=1)
    with torch.no_grad():
        assert torch.equal(gated(x), hidden * F.silu(gate))
    assert torch.equal(gated(x.requires_grad_()), hidden * F.silu(gate))


def test_less_is_kept_for_the_backward_pass() -> None:
    """The input and nothing else: no SiLU of the gate."""
    kept: list[torch.Tensor] = []
    x = maps(2, 8, 3, 4).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated(x)
    assert [tensor.shape for tensor in kept] == [x.shape]


@FORWARD
def test_a_mix_ffn_has_forward_derivatives() -> None:
    torch.manual_seed(1)
    ffn = MixFFN(4, 6).double()
    x, direction = maps(1, 4, 3, 3), maps(1, 4, 3, 3).flip(1)
    slope = torch.func.jvp(ffn, (x,), (direction,))[1]
    step = 1e-6
    expected = (ffn(x + step * direction) - ffn(x - step * direction)) / (2 * step)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-8)

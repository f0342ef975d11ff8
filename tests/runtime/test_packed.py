"""Packed layers multiply as plain ones do, and keep their names and weights."""

import copy

import pytest
import torch
from torch import nn

from opensana.layers import MixFFN
from opensana.runtime.packed import PackedLinear, can_pack, pack

pytestmark = pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.float32), reason="no packed layers on this processor"
)


@torch.no_grad()
def test_packed_layers_give_the_same_numbers() -> None:
    plain = nn.Sequential(nn.Linear(24, 40), nn.SiLU(), nn.Linear(40, 8, bias=False)).double()
    packed = copy.deepcopy(plain).float()
    pack(packed)
    for rows in (1, 2, 30, 257):
        x = torch.randn(3, rows, 24)
        torch.testing.assert_close(packed(x), plain(x.double()).float(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolutions_are_packed_and_others_stay(layout: torch.memory_format) -> None:
    plain = MixFFN(16, 24, norm=True, residual=True)
    packed = copy.deepcopy(plain)
    pack(packed)
    assert isinstance(packed.conv_inverted, PackedLinear)
    assert isinstance(packed.conv_depth, nn.Conv2d)
    x = torch.randn(2, 16, 5, 7).contiguous(memory_format=layout)
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)


def test_a_packed_model_has_the_state_of_the_plain_one() -> None:
    plain = MixFFN(16, 24)
    packed = copy.deepcopy(plain)
    pack(packed)
    state = packed.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())


def test_there_is_no_gradient() -> None:
    layer = PackedLinear(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="no gradient"):
        layer(torch.randn(2, 4, requires_grad=True))


def test_half_precision_and_other_devices_are_left_alone() -> None:
    assert not can_pack(torch.device("cpu"), torch.bfloat16)
    assert not can_pack(torch.device("cuda"), torch.float32)

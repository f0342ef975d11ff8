"""Products of layers: what is counted by hand equals what is counted on the meta device."""

import torch
from torch import nn
from torch.nn import functional

from opensana.evaluate.cost.sheet import attention, convolution, counted, linear
from opensana.models.flops import META


def test_a_linear_layer() -> None:
    with META:
        layer = nn.Linear(30, 50)
    found = counted(layer, lambda: layer(torch.empty(1, 7, 30)))
    assert found.macs == linear(7, 30, 50).macs == 10_500
    assert found.parameters == linear(7, 30, 50).parameters == 1_550
    assert linear(7, 30, 50).numbers == 7 * 30 + 30 * 50 + 7 * 50


def test_a_convolution() -> None:
    with META:
        layer = nn.Conv2d(4, 6, 2, stride=2)
    found = counted(layer, lambda: layer(torch.empty(1, 4, 16, 16)))
    sheet = convolution(64, 4, 6, 2, stride=2)
    assert found.macs == sheet.macs == 64 * 4 * 6 * 4
    assert found.parameters == sheet.parameters == 4 * 6 * 4 + 6
    assert sheet.numbers == 4 * 256 + 6 * 64 + 4 * 6 * 4


def test_fused_attention_writes_no_scores() -> None:
    query, text = torch.empty(1, 2, 64, 8, device=META), torch.empty(1, 2, 10, 8, device=META)

    def forward() -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, text, text)

    found = counted(nn.Identity(), forward)
    assert found == attention(64, 10, 16)
    assert found.macs == 2 * 64 * 10 * 16
    assert found.numbers == 2 * 64 * 16 + 2 * 10 * 16
    assert attention(64, 64, 16, key_width=4).numbers == 2 * 64 * (16 + 4)


def test_what_lies_between_products_is_free() -> None:
    norm = nn.LayerNorm(8)
    assert counted(norm, lambda: norm.to(META)(torch.empty(3, 8)).relu()).macs == 0


def test_sheets_add_up() -> None:
    layer = linear(7, 30, 50)
    twice = layer + layer
    assert twice == layer.times(2)
    assert (twice.macs, twice.parameters) == (2 * layer.macs, 2 * layer.parameters)

"""Weights in 8 bits: close to the plain layers', exact where their numbers are 8 bits already."""

import pytest
import torch
from torch import nn

from opensana.layers import weight_only
from opensana.layers.weight_only import (
    WeightOnlyEmbedding,
    WeightOnlyLinear,
    WeightOnlyPointwise,
    quantised_rows,
)
from tests.launches import Launches


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("group", "error"), [(None, 0.01), (16, 0.006)])
def test_a_layer_is_close_to_the_plain_one(group: int | None, error: float) -> None:
    torch.manual_seed(0)
    plain, x = nn.Linear(64, 48), torch.randn(2, 5, 64)
    layer = WeightOnlyLinear.of(plain, group)
    with torch.no_grad():
        assert 0 < relative(layer(x), plain(x)) < error
    assert layer.weight.dtype == torch.int8
    assert layer.weight_scale.shape == (48, 64 // (group or 64))


def test_a_layer_widens_as_many_rows_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = WeightOnlyLinear.of(nn.Linear(8, 21)), torch.randn(3, 8)
    whole = layer(x)
    monkeypatch.setattr(weight_only, "WIDENED_NUMBERS", 8 * 4)
    torch.testing.assert_close(layer(x), whole)
    monkeypatch.setattr(weight_only, "WIDENED_NUMBERS", 1)
    torch.testing.assert_close(layer(x), whole)


def test_on_a_gpu_a_layer_is_widened_in_a_few_launches() -> None:
    layer = WeightOnlyLinear.of(nn.Linear(2048, 2048)).to("meta")
    with torch.no_grad(), Launches() as launches:
        layer(torch.randn(9, 2048, device="meta"))
    assert 1 < launches.count < 10


def test_scales_and_minima_of_groups_are_applied_as_they_stand() -> None:
    q = torch.randint(-127, 128, (6, 8), dtype=torch.int8)
    scale, minimum = torch.rand(6, 2), torch.rand(6, 2)
    layer = WeightOnlyLinear(q, scale, minimum, torch.ones(6))
    per_channel = [part.repeat_interleave(4, dim=1) for part in (scale, minimum)]
    expected = q * per_channel[0] - per_channel[1]
    assert torch.equal(layer.widened(slice(None), torch.float32), expected)
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), x @ expected.t() + 1)


def test_a_pointwise_convolution_keeps_its_maps() -> None:
    plain, x = nn.Conv2d(8, 6, 1), torch.randn(2, 8, 3, 5)
    found = WeightOnlyPointwise.of(plain)(x)
    assert found.shape == (2, 6, 3, 5)
    with torch.no_grad():
        assert relative(found, plain(x)) < 0.02


def test_an_embedding_widens_the_rows_that_are_looked_up() -> None:
    plain = nn.Embedding(10, 8)
    table, tokens = WeightOnlyEmbedding.of(plain, 4), torch.tensor([[1, 9, 1]])
    found = table(tokens)
    assert torch.equal(found, table.widened(slice(None), torch.float32)[tokens])
    assert relative(found, plain(tokens).detach()) < 0.01


def test_scales_stay_in_float32_and_results_follow_the_input() -> None:
    layer = WeightOnlyLinear.of(nn.Linear(8, 6)).to(torch.bfloat16)
    table = WeightOnlyEmbedding.of(nn.Embedding(10, 8)).to(torch.bfloat16).to("cpu")
    assert layer.weight_scale.dtype == table.weight_scale.dtype == torch.float32
    assert layer.weight.dtype == torch.int8
    vectors = table(torch.tensor([3]))
    assert vectors.dtype == layer(vectors).dtype == torch.bfloat16


def test_a_state_dict_holds_the_8_bit_numbers() -> None:
    layer = WeightOnlyLinear.of(nn.Linear(8, 6))
    assert set(layer.state_dict()) == {"weight", "weight_scale", "bias"}
    with torch.device("meta"):
        other = WeightOnlyLinear.of(nn.Linear(8, 6))
    other.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, 8)
    assert torch.equal(other(x), layer(x))


def test_rows_of_zeros_stay_zeros() -> None:
    q, scale = quantised_rows(torch.zeros(2, 4))
    assert torch.equal(q * scale, torch.zeros(2, 4))


def test_there_is_no_gradient() -> None:
    layer = WeightOnlyLinear.of(nn.Linear(8, 6))
    with pytest.raises(RuntimeError, match="train the plain model"):
        layer(torch.randn(2, 8, requires_grad=True))

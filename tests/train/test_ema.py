"""EMA weights: the decay warms up, what is frozen is shared, and one operation moves all.

Also tests `train/engine/ema.py` and `train/engine/foreach.py`.
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from opensana.train.engine.ema import Average
from tests.launches import Launches


def network() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    model[2].requires_grad_(False)
    return model


@pytest.mark.parametrize(("step", "weight"), [(0, 1 - 1 / 10), (10**6, 1 - 0.999)])
def test_weights_follow_to_the_bit_of_their_equation(step: int, weight: float) -> None:
    model = network()
    average = Average(model, decay=0.999)
    expected = [p.lerp(p + 1, weight) for p in copy.deepcopy(model).parameters()]
    with torch.no_grad():
        for parameter in model[:2].parameters():
            parameter.add_(1)
        model[1].running_mean.fill_(2.0)
    average.update(model, step)
    found = list(average.module.parameters())
    assert all(torch.equal(*pair) for pair in zip(found[:4], expected[:4], strict=True))
    assert found[4] is model[2].weight and not any(p.requires_grad for p in found)
    assert torch.equal(average.module[1].running_mean, torch.full((7,), 2.0))


def test_one_operation_moves_all() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(5, 5) for _ in range(20)))
    average = Average(model, decay=0.999)
    with Launches() as seen:
        average.update(model, 1)
    assert dict(seen.kernels) == {"_foreach_lerp_.Scalar": 1}


def test_a_network_that_is_frozen_has_nothing_to_follow() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    Average(model, decay=0.9).update(model, 1)

"""Guidance is a wrapper around the velocity."""

import pytest
import torch
from torch import Tensor

from opensana.flow.guidance import guided

X, TIMESTEP = torch.zeros(1, 1, 2, 2), torch.tensor(500.0)


def conditional(x: Tensor, timestep: Tensor) -> Tensor:
    return x + 3


def unconditional(x: Tensor, timestep: Tensor) -> Tensor:
    return x + 1


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0), (4.5, 10.0)])
def test_guidance_extrapolates_from_the_unconditional(scale: float, expected: float) -> None:
    velocity = guided(conditional, unconditional, scale)
    assert torch.equal(velocity(X, TIMESTEP), torch.full_like(X, expected))


def test_scale_one_calls_only_the_conditional() -> None:
    def never(x: Tensor, timestep: Tensor) -> Tensor:
        raise AssertionError("the unconditional velocity was called")

    assert guided(conditional, never, 1.0) is conditional

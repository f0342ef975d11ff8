"""The training objective."""

import torch
from torch import Tensor

from opensana.flow.loss import flow_matching_loss

X0 = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
SIGMA = torch.tensor([0.001, 0.333, 0.5, 1.0])


def test_the_true_velocity_has_no_loss() -> None:
    loss = flow_matching_loss(lambda x, timestep: NOISE - X0, X0, NOISE, SIGMA)
    assert torch.equal(loss, torch.zeros(4))


def test_the_loss_is_the_mean_square_of_each_sample() -> None:
    wrong = torch.arange(4.0).reshape(4, 1, 1, 1)
    loss = flow_matching_loss(lambda x, timestep: NOISE - X0 + wrong, X0, NOISE, SIGMA)
    assert torch.allclose(loss, torch.tensor([0.0, 1.0, 4.0, 9.0]), atol=1e-5)


def test_the_network_sees_the_path_and_its_timesteps() -> None:
    seen: list[Tensor] = []

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        seen.extend([x, timestep])
        return x

    flow_matching_loss(velocity, X0, NOISE, SIGMA)
    assert torch.equal(seen[1], torch.tensor([1.0, 333.0, 500.0, 1000.0]))
    assert torch.allclose(seen[0][3], NOISE[3])
    assert torch.allclose(seen[0][2], (X0[2] + NOISE[2]) / 2)


def test_the_loss_is_float32_and_carries_gradients() -> None:
    weight = torch.ones((), dtype=torch.bfloat16, requires_grad=True)
    x0, noise = X0.bfloat16(), NOISE.bfloat16()
    loss = flow_matching_loss(lambda x, timestep: weight * x.bfloat16(), x0, noise, SIGMA)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert weight.grad is not None

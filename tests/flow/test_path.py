"""Identities of the straight path."""

import torch

from opensana.flow.path import interpolate, to_x0, velocity_target

X0 = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def test_the_ends_of_the_path_are_data_and_noise() -> None:
    assert torch.equal(interpolate(X0, NOISE, 0.0), X0)
    assert torch.equal(interpolate(X0, NOISE, 1.0), NOISE)


def test_each_sample_has_its_own_sigma() -> None:
    sigma = torch.tensor([0.0, 0.25, 1.0])
    together = interpolate(X0, NOISE, sigma)
    for index, level in enumerate(sigma.tolist()):
        assert torch.allclose(together[index], interpolate(X0[index], NOISE[index], level))


def test_the_target_is_the_derivative_along_the_path() -> None:
    x0, noise = X0.double(), NOISE.double()
    slope = (interpolate(x0, noise, 0.6) - interpolate(x0, noise, 0.4)) / 0.2
    assert torch.allclose(slope, velocity_target(x0, noise))


def test_the_target_points_back_to_the_data() -> None:
    sigma = torch.tensor([0.1, 0.5, 1.0])
    x = interpolate(X0, NOISE, sigma)
    assert torch.allclose(to_x0(x, velocity_target(X0, NOISE), sigma), X0, atol=1e-6)
    assert torch.allclose(
        to_x0(x, velocity_target(X0, NOISE), torch.tensor(0.5))[1], X0[1], atol=1e-6
    )

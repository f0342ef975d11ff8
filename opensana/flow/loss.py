"""The flow-matching loss (paper 3.2): unweighted mean squared error of the velocity."""

from torch import Tensor

from opensana.flow.guidance import Velocity
from opensana.flow.path import interpolate, velocity_target
from opensana.flow.timesteps import network_timestep


def flow_matching_loss(velocity: Velocity, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """|v(x(sigma), 1000 sigma) - (noise - x0)|^2, averaged over each sample: [B] from sigma [B]."""
    predicted = velocity(interpolate(x0, noise, sigma), network_timestep(sigma, truncated=True))
    error = predicted.float() - velocity_target(x0, noise).float()
    return error.square().flatten(1).mean(1)

"""The straight path between data and noise, and its velocity (rectified flow, arXiv 2209.03003).

x(sigma) = (1 - sigma) x0 + sigma noise, so the network learns dx/dsigma = noise - x0 (equation 1
there, SANA 3.2). sigma is a number or one value per sample [B]; latents are [B, C, H, W].
"""

from torch import Tensor


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x(sigma) = (1 - sigma) x0 + sigma noise."""
    sigma = _per_sample(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """v = dx/dsigma = noise - x0."""
    return noise - x0


def to_x0(x: Tensor, v: Tensor, sigma: Tensor | float) -> Tensor:
    """x0 = x - sigma v: the predicted data."""
    return x - _per_sample(sigma, x) * v


def _per_sample(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """[B] -> [B, 1, 1, 1] for broadcasting."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma
    return sigma.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))

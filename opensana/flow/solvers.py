"""ODE solvers: functions that follow a velocity from noise (sigma near 1) to data (sigma 0).

flow_dpm is the paper's Flow-DPM-Solver (Algorithm 1), that is DPM-Solver++(2M) (arXiv 2211.01095,
Algorithm 2) in flow variables; euler is the baseline. The state keeps the dtype of the noise: pass
float32; the velocity casts for its network.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opensana.errors import NumericsError
from opensana.flow.guidance import Velocity
from opensana.flow.path import to_x0
from opensana.flow.timesteps import euler_sigmas, flow_dpm_sigmas, network_timestep

OnStep = Callable[[int, int, Tensor], None]
"""Called after every step with its index, the number of steps and the latent."""


@dataclass(frozen=True)
class Solver:
    """A solver and its published schedule of noise levels."""

    sigmas: Callable[[int, float], tuple[float, ...]]
    """(steps, shift) to steps + 1 descending levels that end in 0."""
    solve: Callable[..., Tensor]
    """(velocity, noise, sigmas, on_step=None) to the latent at the last level."""


def flow_dpm(
    velocity: Velocity, noise: Tensor, sigmas: Sequence[float], on_step: OnStep | None = None
) -> Tensor:
    """Flow-DPM-Solver, second-order multistep; the first and the last step are first order.

    x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - exp(-h)) D, where alpha = 1 - sigma,
    lambda = ln(alpha / sigma) is half the log-SNR, h = lambda_t - lambda_s, and D is the predicted
    x0, extrapolated to the middle of the step: D = x0 + (x0 - previous x0) / (2 r) with
    r = h_previous / h.
    """
    x, total = noise, len(sigmas) - 1
    previous = noise  # read from the second step on
    for step in range(total):
        now, after = sigmas[step], sigmas[step + 1]
        x0 = to_x0(x, velocity(x, _timestep(now, x, truncated=True)), now)
        first_order = step in (0, total - 1)
        weight = 0.0  # 1 / (2 r) = h / (2 h_previous)
        if not first_order:
            h_previous = _half_log_snr(now) - _half_log_snr(sigmas[step - 1])
            weight = (_half_log_snr(after) - _half_log_snr(now)) / (2 * h_previous)
        data = x0 + weight * (x0 - previous)
        # alpha_t (1 - exp(-h)) without the logarithms, which are infinite at sigma 0 and 1.
        x = (after / now) * x + ((1 - after) - (1 - now) * after / now) * data
        previous = x0
        finish_step(step, total, x, on_step)
    return x


def euler(
    velocity: Velocity, noise: Tensor, sigmas: Sequence[float], on_step: OnStep | None = None
) -> Tensor:
    """First-order solver: x_t = x_s + (sigma_t - sigma_s) v."""
    x, total = noise, len(sigmas) - 1
    for step in range(total):
        now, after = sigmas[step], sigmas[step + 1]
        x = x + (after - now) * velocity(x, _timestep(now, x, truncated=False))
        finish_step(step, total, x, on_step)
    return x


SOLVERS = {
    "flow_dpm": Solver(flow_dpm_sigmas, flow_dpm),
    "euler": Solver(euler_sigmas, euler),
}


def finish_step(step: int, total: int, x: Tensor, on_step: OnStep | None) -> None:
    """Check that the latent is finite, then call `on_step`."""
    require_finite(x, step)
    if on_step is not None:
        on_step(step, total, x)


def require_finite(latent: Tensor, step: int) -> None:
    """NumericsError if a latent holds NaN or infinity; it would decode to a black picture."""
    if not torch.isfinite(latent).all():
        bad = (~torch.isfinite(latent)).flatten(1).any(1).nonzero().flatten().tolist()
        raise NumericsError(
            f"the latent stopped being finite at step {step + 1} (pictures {bad} of the batch, "
            f"counted from 0); try --dtype float32, or a lower guidance"
        )


def _timestep(sigma: float, x: Tensor, *, truncated: bool) -> Tensor:
    """A scalar on the latent's device, computed on the CPU: some devices lack float64."""
    exact = torch.tensor(sigma, dtype=torch.float64)
    return network_timestep(exact, truncated=truncated).to(x.device)


def _half_log_snr(sigma: float) -> float:
    """lambda = ln((1 - sigma) / sigma); minus infinity for pure noise."""
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf

"""ODE solvers: they follow a velocity from noise (sigma near 1) to data (sigma 0).

A solver is a generator that asks for each velocity it needs: `follow` answers from one function,
and a server answers several solvers, each at its own noise level, from one batch.

flow_dpm is the paper's Flow-DPM-Solver (Algorithm 1), that is DPM-Solver++(2M) (arXiv 2211.01095,
Algorithm 2) in flow variables; euler is the baseline. The state keeps the dtype of the noise: pass
float32; the velocity casts for its network.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opensana.errors import NumericsError
from opensana.flow.guidance import Velocity
from opensana.flow.path import to_x0
from opensana.flow.timesteps import euler_sigmas, flow_dpm_sigmas, network_timestep

OnStep = Callable[[int, int, Tensor], None]
"""Called after every step with its index, the number of steps and the latent."""

Steps = Generator[tuple[Tensor, Tensor], Tensor, Tensor]
"""A solver at work: it yields (x, timestep), is sent the velocity there, and returns the latent."""


def follow(velocity: Velocity, steps: Steps) -> Tensor:
    """The latent that a solver returns, led by one velocity."""
    asked = next(steps, None)
    assert asked is not None, "no step to run"
    while True:
        try:
            asked = steps.send(velocity(*asked))
        except StopIteration as end:
            return end.value


@dataclass(frozen=True)
class Solver:
    """A solver and its published schedule of noise levels."""

    sigmas: Callable[[int, float], tuple[float, ...]]
    """(steps, shift) to steps + 1 descending levels that end in 0."""
    steps: Callable[[Tensor, Sequence[float], OnStep | None], Steps]
    """(noise, sigmas, on_step) to the solver at work."""
    timestep: Callable[[float], Tensor]
    """The scalar that the network is told at a noise level."""

    def solve(
        self,
        velocity: Velocity,
        noise: Tensor,
        sigmas: Sequence[float],
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The latent at the last level."""
        return follow(velocity, self.steps(noise, sigmas, on_step))


def flow_dpm(noise: Tensor, sigmas: Sequence[float], on_step: OnStep | None = None) -> Steps:
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
        v = yield x, truncated_timestep(now)
        x0 = to_x0(x, v, now)
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


def euler(noise: Tensor, sigmas: Sequence[float], on_step: OnStep | None = None) -> Steps:
    """First-order solver: x_t = x_s + (sigma_t - sigma_s) v."""
    x, total = noise, len(sigmas) - 1
    for step in range(total):
        now, after = sigmas[step], sigmas[step + 1]
        v = yield x, exact_timestep(now)
        x = x + (after - now) * v
        finish_step(step, total, x, on_step)
    return x


def truncated_timestep(sigma: float) -> Tensor:
    """1000 sigma as an integer; on the CPU, since some devices lack float64."""
    return network_timestep(torch.tensor(sigma, dtype=torch.float64), truncated=True)


def exact_timestep(sigma: float) -> Tensor:
    """1000 sigma, on the CPU."""
    return network_timestep(torch.tensor(sigma, dtype=torch.float64), truncated=False)


SOLVERS = {
    "flow_dpm": Solver(flow_dpm_sigmas, flow_dpm, truncated_timestep),
    "euler": Solver(euler_sigmas, euler, exact_timestep),
}


def finish_step(step: int, total: int, x: Tensor, on_step: OnStep | None) -> None:
    """Check that the latent is finite, then call `on_step`.

    An accelerator would have to be waited for: there only the last step is checked, as what is not
    finite stays so.
    """
    if x.device.type == "cpu":
        require_finite(x, step)
    elif step == total - 1:
        require_finite(x)
    if on_step is not None:
        on_step(step, total, x)


def require_finite(latent: Tensor, step: int | None = None) -> None:
    """NumericsError if a latent holds NaN or infinity; it would decode to a black picture."""
    finite = latent.isfinite().flatten(1).all(1).tolist()
    if not all(finite):
        when = "after the last step" if step is None else f"at step {step + 1}"
        bad = [index for index, good in enumerate(finite) if not good]
        raise NumericsError(
            f"the latent is not finite {when} (pictures {bad} of the batch, counted from 0); try "
            "--dtype float32, or a lower guidance"
        )


def _half_log_snr(sigma: float) -> float:
    """lambda = ln((1 - sigma) / sigma); minus infinity for pure noise."""
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf

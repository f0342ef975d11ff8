"""Solvers on analytic velocities: parity with diffusers, order of convergence, failures."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from opensana.errors import NumericsError
from opensana.flow.guidance import Velocity
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS, require_finite

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NOISE = noise_for([1, 2, 3], (4, 6, 6))
MIXING = torch.randn(4, 4, generator=torch.Generator().manual_seed(9))


def curved(x: Tensor, timestep: Tensor) -> Tensor:
    """tanh(A x) + 0.5 sigma: a smooth velocity that depends on everything."""
    return torch.tanh(torch.einsum("dc,bchw->bdhw", MIXING, x)) + 0.5 * timestep / 1000


def diffusers_trajectory(scheduler, velocity: Velocity, steps: int) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    x, latents = NOISE, []
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, timestep), timestep, x, return_dict=False)[0]
        latents.append(x)
    return latents


def reference(name: str, shift: float):
    diffusers = pytest.importorskip("diffusers")
    if name == "euler":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    return diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=shift,
        final_sigmas_type="zero",
        lower_order_final=True,
    )


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("steps", "shift"), [(20, 3.0), (20, 6.0), (14, 1.0), (2, 3.0), (1, 3.0)])
def test_the_trajectory_agrees_with_diffusers(name: str, steps: int, shift: float) -> None:
    expected = diffusers_trajectory(reference(name, shift), curved, steps)
    latents: list[Tensor] = []
    solver = SOLVERS[name]
    sigmas = solver.sigmas(steps, shift)
    solver.solve(curved, NOISE, sigmas, lambda step, total, latent: latents.append(latent))
    assert len(latents) == steps
    for ours, theirs in zip(latents, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


DEVIATION = 0.3


def gaussian_deviation(sigma: float) -> float:
    """Standard deviation of x(sigma) for data N(0, DEVIATION^2)."""
    return math.hypot((1 - sigma) * DEVIATION, sigma)


def gaussian_velocity(sigmas: Sequence[float]) -> Velocity:
    """E[noise - x0 | x] for Gaussian data; walks the exact sigmas, not the truncated timesteps."""
    walk = iter(sigmas)

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        sigma = next(walk)
        return (sigma - (1 - sigma) * DEVIATION**2) / gaussian_deviation(sigma) ** 2 * x

    return velocity


def error(solve: Callable[..., Tensor], steps: int) -> float:
    """After equal steps from sigma 0.9 to 0.1; x(sigma) is proportional to its deviation."""
    sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()
    start = torch.full((1, 1, 1, 1), gaussian_deviation(0.9), dtype=torch.float64)
    solved = solve(gaussian_velocity(sigmas), start, sigmas).item()
    return abs(solved - gaussian_deviation(0.1))


@pytest.mark.parametrize(("name", "order"), [("euler", 1.0), ("flow_dpm", 2.0)])
def test_the_solver_converges_at_its_order(name: str, order: float) -> None:
    errors = [error(SOLVERS[name].solve, steps) for steps in (40, 80, 160, 320)]
    orders = [math.log2(big / small) for big, small in pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.15)
    assert all(found > order - 0.4 for found in orders)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_straight_velocity_is_followed_exactly(name: str, steps: int) -> None:
    data = noise_for([8], (4, 6, 6))
    noise = noise_for([9], (4, 6, 6))
    sigmas = SOLVERS[name].sigmas(steps, 3.0)
    start = (1 - sigmas[0]) * data + sigmas[0] * noise
    solved = SOLVERS[name].solve(lambda x, timestep: noise - data, start, sigmas)
    assert torch.allclose(solved, data, atol=1e-5)


def test_flow_dpm_may_start_from_pure_noise() -> None:
    solved = SOLVERS["flow_dpm"].solve(curved, NOISE, (1.0, 0.7, 0.4, 0.2, 0.0))
    assert torch.isfinite(solved).all()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    solver = SOLVERS[name]
    sigmas = solver.sigmas(8, 3.0)
    together = solver.solve(curved, NOISE, sigmas)
    for index in range(len(NOISE)):
        alone = solver.solve(curved, NOISE[index : index + 1], sigmas)
        assert torch.allclose(alone[0], together[index], atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_are_reported_in_order_and_the_noise_is_kept(name: str) -> None:
    seen: list[tuple[int, int]] = []
    noise = NOISE.clone()
    sigmas = SOLVERS[name].sigmas(5, 3.0)
    SOLVERS[name].solve(curved, noise, sigmas, lambda step, total, x: seen.append((step, total)))
    assert seen == [(step, 5) for step in range(5)]
    assert torch.equal(noise, NOISE)


@pytest.mark.parametrize(("name", "first"), [("flow_dpm", 999.0), ("euler", 1000.0)])
def test_the_network_gets_a_scalar_timestep(name: str, first: float) -> None:
    timesteps: list[Tensor] = []

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        timesteps.append(timestep)
        return x

    SOLVERS[name].solve(velocity, NOISE, SOLVERS[name].sigmas(4, 3.0))
    assert timesteps[0].item() == first
    assert all(t.shape == () and t.dtype == torch.float32 for t in timesteps)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_latent_that_is_not_finite_is_an_error(name: str, bad: float) -> None:
    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        v = torch.zeros_like(x)
        v[1] = bad
        return v

    with pytest.raises(NumericsError, match=r"step 1 .*pictures \[1\]"):
        SOLVERS[name].solve(velocity, NOISE, SOLVERS[name].sigmas(4, 3.0))


def test_a_finite_latent_passes() -> None:
    require_finite(NOISE, 0)


def test_solvers_at_different_steps_are_answered_from_one_batch() -> None:
    """As a server does: three pictures, each with its own steps, solver and start."""
    asked = [("flow_dpm", 3), ("euler", 5), ("flow_dpm", 8)]
    noises = [NOISE[index : index + 1] for index in range(3)]
    own = zip(asked, noises, strict=True)
    alone = [
        SOLVERS[name].solve(curved, noise, SOLVERS[name].sigmas(steps, 3.0))
        for (name, steps), noise in own
    ]
    running = {
        index: SOLVERS[name].steps(noises[index], SOLVERS[name].sigmas(steps, 3.0), None)
        for index, (name, steps) in enumerate(asked)
    }
    questions = {index: next(steps) for index, steps in running.items()}
    latents: dict[int, Tensor] = {}
    while running:
        batch = torch.cat([questions[index][0] for index in running])
        timesteps = torch.stack([questions[index][1] for index in running])
        answers = curved(batch, timesteps[:, None, None, None]).split(1)
        for (index, steps), answer in zip(list(running.items()), answers, strict=True):
            try:
                questions[index] = steps.send(answer)
            except StopIteration as end:
                latents[index] = end.value
                del running[index]
    for index, expected in enumerate(alone):
        assert torch.equal(latents[index], expected)

"""Starting from a picture: which levels are walked, where from, and what is kept on the way."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from opensana.flow.edit import Start, from_picture, keeping, last_steps
from opensana.flow.noise import noise_for
from opensana.flow.path import interpolate
from opensana.flow.solvers import SOLVERS

NOISE = noise_for([1, 2], (4, 6, 6))
X0 = noise_for([3], (4, 6, 6))
REDRAWN = torch.zeros(6, 6, dtype=torch.bool)
REDRAWN[1:4, 2:5] = True


def curved(x: Tensor, timestep: Tensor) -> Tensor:
    """Couples every cell with its neighbours, so that a wrong kept cell shows in a redrawn one."""
    return torch.tanh(x.roll(1, -1) + x.roll(1, -2)) * (1 + timestep / 1000) + 0.3 * x


def solve(name: str, start: Start | None, steps: int = 8, noise: Tensor = NOISE) -> list[Tensor]:
    """The starting latent and the latent after every step."""
    solver = SOLVERS[name]
    velocity, x, sigmas = curved, noise, solver.sigmas(steps, 3.0)
    if start is not None:
        velocity, x, sigmas = from_picture(start, velocity, x, sigmas)
    latents = [x]
    solver.solve(velocity, x, sigmas, lambda step, total, latent: latents.append(latent))
    return latents


@pytest.mark.parametrize(
    ("steps", "strength", "run"),
    [(20, 1.0, 20), (20, 0.6, 12), (20, 0.55, 11), (14, 0.75, 11), (20, 0.01, 1), (1, 0.3, 1)],
)
@pytest.mark.parametrize("name", SOLVERS)
def test_strength_is_the_share_of_the_steps(
    name: str, steps: int, strength: float, run: int
) -> None:
    sigmas = SOLVERS[name].sigmas(steps, 3.0)
    left = last_steps(sigmas, strength)
    assert tuple(left) == sigmas[-run - 1 :]
    assert len(solve(name, Start(X0, strength), steps)) == run + 1


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.6), (14, 0.75), (28, 0.3), (20, 0.01)])
def test_as_many_steps_as_diffusers_runs(steps: int, strength: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler as Scheduler  # pyright: ignore
    from diffusers import StableDiffusion3Img2ImgPipeline as Pipeline  # pyright: ignore

    scheduler = Scheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    pipeline = Pipeline.__new__(Pipeline)
    object.__setattr__(pipeline, "scheduler", scheduler)
    timesteps, _ = pipeline.get_timesteps(steps, strength, "cpu")
    ours = last_steps(SOLVERS["euler"].sigmas(steps, 3.0), strength)
    assert torch.allclose(timesteps, 1000 * torch.tensor(ours[:-1]), atol=1e-3)


@pytest.mark.parametrize("name", SOLVERS)
def test_full_strength_is_plain_drawing(name: str) -> None:
    edited, plain = solve(name, Start(X0, 1.0)), solve(name, None)
    assert all(torch.equal(a, b) for a, b in zip(edited, plain, strict=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_start_lies_between_picture_and_noise(name: str) -> None:
    sigmas = SOLVERS[name].sigmas(8, 3.0)
    x = solve(name, Start(X0, 0.5))[0]
    assert torch.equal(x, interpolate(X0, NOISE, sigmas[4]))


@pytest.mark.parametrize("name", SOLVERS)
def test_less_strength_stays_closer_to_the_picture(name: str) -> None:
    distances = [
        (solve(name, Start(X0, strength), steps=20)[-1] - X0).square().mean().item()
        for strength in (0.05, 0.25, 0.5, 0.75, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 0.05 < 0.5 < distances[-1]


def test_flow_dpm_starts_its_history_anew() -> None:
    sigmas = SOLVERS["flow_dpm"].sigmas(8, 3.0)[4:]
    start, first = solve("flow_dpm", Start(X0, 0.5))[:2]
    timestep = torch.tensor(1000 * sigmas[0]).floor()
    euler = start + (sigmas[1] - sigmas[0]) * curved(start, timestep)
    assert torch.allclose(first, euler, atol=1e-5)  # first order: the two solvers agree


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("strength", [0.5, 0.9])
def test_kept_cells_are_the_picture_at_every_level(name: str, strength: float) -> None:
    sigmas = last_steps(SOLVERS[name].sigmas(8, 3.0), strength)
    for sigma, x in zip(sigmas, solve(name, Start(X0, strength, REDRAWN)), strict=True):
        expected = interpolate(X0, NOISE, sigma)
        assert torch.allclose(x[..., ~REDRAWN], expected[..., ~REDRAWN], atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_full_strength_forgets_the_picture_where_it_is_redrawn_only(name: str) -> None:
    first, *_, last = solve(name, Start(X0, 1.0, REDRAWN))
    assert torch.equal(first, NOISE)
    assert torch.allclose(last[..., ~REDRAWN], X0.expand_as(last)[..., ~REDRAWN], atol=5e-3)


def test_keeping_is_replacing_after_every_step() -> None:
    sigmas = SOLVERS["euler"].sigmas(8, 3.0)[2:]
    x = interpolate(X0, NOISE, sigmas[0])
    for now, after in pairwise(sigmas):
        x = x + (after - now) * curved(x, torch.tensor(1000 * now))
        x = torch.where(REDRAWN, x, interpolate(X0, NOISE, after))
    assert torch.allclose(solve("euler", Start(X0, 0.75, REDRAWN))[-1], x, atol=1e-5)


def test_redrawn_cells_follow_the_network() -> None:
    velocity = keeping(curved, X0, NOISE, REDRAWN)
    timestep = torch.tensor(500.0)
    found, expected = velocity(NOISE, timestep), curved(NOISE, timestep)
    assert torch.equal(found[..., REDRAWN], expected[..., REDRAWN])
    assert torch.equal(found[..., ~REDRAWN], (NOISE - X0)[..., ~REDRAWN])


@pytest.mark.parametrize("name", SOLVERS)
def test_an_edit_does_not_depend_on_its_batch(name: str) -> None:
    start = Start(X0, 0.6, REDRAWN)
    together = solve(name, start)[-1]
    for index in range(len(NOISE)):
        alone = solve(name, start, noise=NOISE[index : index + 1])[-1]
        assert torch.allclose(alone[0], together[index], atol=1e-5)

"""The few-step sampler: the published levels, diffusers' trajectory, whose noise is whose."""

import math
from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from opensana.errors import NumericsError
from opensana.flow.noise import noise_for, noises_for
from opensana.flow.scm import scm, scm_sigmas

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SEEDS, SHAPE = (1, 2, 3), (4, 6, 6)
MIXING = torch.randn(4, 4, generator=torch.Generator().manual_seed(9))
GOLDEN_ANGLES = {
    1: (1.5708, 0),
    2: (1.5708, 1.3, 0),
    3: (1.5708, 1.0472, 0.5236, 0),
    4: (1.5708, 1.1781, 0.7854, 0.3927, 0),
}
GOLDEN_SIGMAS = {
    1: (1.000004, 0),
    2: (1.000004, 0.782708, 0),
    3: (1.000004, 0.633976, 0.366026, 0),
    4: (1.000004, 0.707108, 0.500001, 0.292894, 0),
}


def curved(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.tanh(torch.einsum("dc,bchw->bdhw", MIXING, x)) + 0.5 * sigma


def noises(seeds: tuple[int, ...] = SEEDS) -> Iterator[Tensor]:
    return noises_for(seeds, SHAPE)


def angles_of_diffusers(scheduler, steps: int) -> Tensor:
    scheduler.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    return scheduler.timesteps


def diffusers_guesses(steps: int, sigma_data: float) -> list[Tensor]:
    """The published walk on TrigFlow's circle around the flow network `curved`."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.SCMScheduler(sigma_data=sigma_data)
    angles = angles_of_diffusers(scheduler, steps)
    scheduler.set_begin_index(0)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    first = [torch.randn(SHAPE, generator=generator) for generator in generators]
    x, guesses = sigma_data * torch.stack(first), []
    for angle in angles[:-1]:
        t = angle.sin() / (angle.cos() + angle.sin())
        norm = (t**2 + (1 - t) ** 2).sqrt()
        inside = norm * x / sigma_data
        trig = ((1 - 2 * t) * inside + (1 - 2 * t + 2 * t**2) * curved(inside, t)) / norm
        x, guess = scheduler.step(
            sigma_data * trig, angle, x, generator=generators, return_dict=False
        )
        guesses.append(guess / sigma_data)
    return guesses


@pytest.mark.parametrize("steps", GOLDEN_SIGMAS)
def test_levels_are_the_published_ones(steps: int) -> None:
    sigmas = scm_sigmas(steps)
    angles = [math.atan2(sigma, 1 - sigma) for sigma in sigmas]
    assert sigmas == pytest.approx(GOLDEN_SIGMAS[steps], abs=1e-6)
    assert angles == pytest.approx(GOLDEN_ANGLES[steps], abs=1e-6)
    diffusers = pytest.importorskip("diffusers")
    theirs = angles_of_diffusers(diffusers.SCMScheduler(), steps)
    assert angles == pytest.approx(theirs.tolist(), abs=2e-7)


@pytest.mark.parametrize("sigma_data", [0.5, 0.8])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_every_guess_agrees_with_diffusers(steps: int, sigma_data: float) -> None:
    expected = diffusers_guesses(steps, sigma_data)
    guesses: list[Tensor] = []
    last = scm(curved, noises(), scm_sigmas(steps), lambda step, total, x0: guesses.append(x0))
    assert last is guesses[-1]
    for ours, theirs in zip(guesses, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_noise_of_a_later_step_belongs_to_its_seed_too() -> None:
    together = list(islice(noises(), 3))
    alone = list(islice(noises(SEEDS[1:2]), 3))
    assert torch.equal(together[0], noise_for(SEEDS, SHAPE))
    for batch, single in zip(together, alone, strict=True):
        assert torch.equal(batch[1], single[0])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_picture_does_not_depend_on_its_batch(steps: int) -> None:
    together = scm(curved, noises(), scm_sigmas(steps))
    for index, seed in enumerate(SEEDS):
        alone = scm(curved, noises((seed,)), scm_sigmas(steps))
        assert torch.allclose(alone[0], together[index], atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_network_that_knows_the_data_is_believed(steps: int) -> None:
    data = noise_for([8, 9, 10], SHAPE)
    drawn = scm(lambda x, sigma: (x - data) / sigma, noises(), scm_sigmas(steps))
    assert torch.allclose(drawn, data, atol=1e-5)


def test_every_step_takes_a_noise_and_tells_sigma() -> None:
    told: list[Tensor] = []
    counted = noises()

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        told.append(sigma)
        return x

    scm(velocity, counted, scm_sigmas(4))
    assert torch.stack(told).tolist() == pytest.approx(scm_sigmas(4)[:-1])
    assert all(sigma.shape == () and sigma.dtype == torch.float32 for sigma in told)
    assert torch.equal(next(counted), next(islice(noises(), 4, None)))
    with pytest.raises(ValueError, match="shorter"):
        scm(velocity, [noise_for(SEEDS, SHAPE)], scm_sigmas(2))


def test_a_guess_that_is_not_finite_is_an_error() -> None:
    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return torch.full_like(x, math.nan)

    with pytest.raises(NumericsError, match="step 1"):
        scm(velocity, noises(), scm_sigmas(2))

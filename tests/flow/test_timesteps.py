"""Noise levels against the published ones (golden values) and the diffusers schedulers."""

from itertools import pairwise

import pytest
import torch

from opensana.flow.timesteps import (
    euler_sigmas,
    flow_dpm_sigmas,
    logit_normal,
    network_timestep,
    shift_sigma,
    uniform,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FLOW_DPM_SHIFT_3 = """0.999666 0.982419 0.963941 0.944094 0.922722 0.89964 0.874635 0.847457
0.81781 0.78534 0.749625 0.710152 0.666296 0.617284 0.562148 0.499667 0.428265 0.345888 0.249792
0.13624 0"""
FLOW_DPM_SHIFT_6 = """0.999833 0.991132 0.98164 0.971243 0.959808 0.947169 0.933126 0.917431
0.899775 0.879765 0.856898 0.830513 0.799733 0.763358 0.719712 0.66637 0.5997 0.513992 0.399733
0.239808 0"""
EULER_SHIFT_3 = """1.0 0.981875 0.962386 0.941373 0.918652 0.894003 0.867172 0.837855 0.805689
0.770239 0.730974 0.687244 0.63824 0.582948 0.520074 0.447944 0.364352 0.26633 0.149787 0.008929
0"""
FLOW_DPM_TIMESTEPS = """999 982 963 944 922 899 874 847 817 785 749 710 666 617 562 499 428 345
249 136"""


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


@pytest.mark.parametrize(
    ("sigmas", "golden"),
    [
        (flow_dpm_sigmas(20, 3.0), FLOW_DPM_SHIFT_3),
        (flow_dpm_sigmas(20, 6.0), FLOW_DPM_SHIFT_6),
        (euler_sigmas(20, 3.0), EULER_SHIFT_3),
    ],
)
def test_sigmas_are_the_published_ones(sigmas: tuple[float, ...], golden: str) -> None:
    assert sigmas == pytest.approx(numbers(golden), abs=1e-6)


def test_truncated_timesteps_are_the_published_ones() -> None:
    sigmas = torch.tensor(flow_dpm_sigmas(20, 3.0)[:-1], dtype=torch.float64)
    timesteps = network_timestep(sigmas, truncated=True)
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == numbers(FLOW_DPM_TIMESTEPS)


@pytest.mark.parametrize("shift", [1.0, 3.0, 4.0, 6.0])
def test_every_step_count_agrees_with_diffusers(shift: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    dpm = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    flow_euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in range(1, 61):
        dpm.set_timesteps(steps)
        sigmas = torch.tensor(flow_dpm_sigmas(steps, shift), dtype=torch.float64)
        assert torch.equal(sigmas.float(), dpm.sigmas)
        timesteps = network_timestep(sigmas[:-1], truncated=True)
        assert torch.equal(timesteps.long(), dpm.timesteps)

        flow_euler.set_timesteps(steps)
        sigmas = torch.tensor(euler_sigmas(steps, shift), dtype=torch.float64)
        torch.testing.assert_close(sigmas.float(), flow_euler.sigmas, rtol=2e-7, atol=0)
        timesteps = network_timestep(sigmas[:-1], truncated=False)
        torch.testing.assert_close(timesteps, flow_euler.timesteps, rtol=2e-7, atol=0)


@pytest.mark.parametrize("sigmas_for", [flow_dpm_sigmas, euler_sigmas])
@pytest.mark.parametrize("steps", [1, 2, 18, 1000])
def test_sigmas_descend_to_zero(sigmas_for, steps: int) -> None:
    sigmas = sigmas_for(steps, 3.0)
    assert len(sigmas) == steps + 1
    assert sigmas[-1] == 0
    assert all(high > low for high, low in pairwise(sigmas))


def test_shift_keeps_the_ends_and_one_is_no_shift() -> None:
    assert shift_sigma(0.0, 3.0) == 0.0
    assert shift_sigma(1.0, 3.0) == 1.0
    assert shift_sigma(0.25, 1.0) == 0.25
    assert shift_sigma(0.5, 3.0) == pytest.approx(0.75)
    assert torch.allclose(shift_sigma(torch.tensor([0.5, 1.0]), 3.0), torch.tensor([0.75, 1.0]))


@pytest.mark.parametrize("draw", [logit_normal, uniform])
def test_training_sigmas_are_seeded_levels(draw) -> None:
    sigma = draw(4000, torch.Generator().manual_seed(7))
    assert sigma.shape == (4000,)
    assert sigma.min() >= 0.001
    assert sigma.max() <= 1
    assert torch.allclose(sigma * 1000, (sigma * 1000).round(), atol=1e-3)
    assert sigma.mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(sigma, draw(4000, torch.Generator().manual_seed(7)))


def test_logit_normal_prefers_the_middle() -> None:
    generator = torch.Generator().manual_seed(0)
    middle = ((logit_normal(4000, generator) - 0.5).abs() < 0.25).float().mean().item()
    assert middle == pytest.approx(0.728, abs=0.03)  # P(|N(0, 1)| < ln 3)
    assert logit_normal(4000, generator, mean=1.0).mean() > 0.6

"""A seed belongs to an image."""

import torch

from opensana.flow.noise import noise_for

SHAPE = (4, 6, 5)


def test_noise_does_not_depend_on_the_batch() -> None:
    batch = noise_for([3, 7, 2**63 - 1], SHAPE)
    assert batch.shape == (3, *SHAPE)
    for index, seed in enumerate([3, 7, 2**63 - 1]):
        assert torch.equal(batch[index], noise_for([seed], SHAPE)[0])
    assert not torch.equal(batch[0], batch[1])


def test_noise_is_drawn_in_float32_whatever_the_dtype() -> None:
    exact, half = noise_for([5], SHAPE), noise_for([5], SHAPE, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(exact.bfloat16(), half)


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    noise_for([1, 2], SHAPE)
    assert torch.equal(torch.rand(1), expected)


def test_noise_is_standard_normal() -> None:
    noise = noise_for([0], (16, 64, 64))
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02

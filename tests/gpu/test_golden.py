"""emoji-256 draws on a GPU what it draws on a CPU: golden.py."""

import numpy as np
import pytest
import torch

from benchmarks.gpu.measuring import relative
from opensana.device import has_bfloat16
from tests.gpu import golden

CPU = torch.device("cpu")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(scope="module")
def kept() -> golden.Golden:
    return golden.Golden.read()


def test_the_file_is_that_of_the_packaged_weights(kept: golden.Golden) -> None:
    """If the weights are others: python -m tests.gpu.golden."""
    sana, request = golden.model(kept.texts, CPU, F32), golden.REQUESTS[0]
    assert torch.equal(golden.noise(sana, request), kept.noises[0])
    latent, picture = golden.drawn(sana, request)
    assert relative(latent, kept.latents[0]) < 1e-4
    assert golden.decibels(picture, kept.pictures[0]) > 60


def test_another_picture_is_told_apart(kept: golden.Golden) -> None:
    assert golden.decibels(kept.pictures[0], kept.pictures[1]) < 20
    assert golden.decibels(kept.pictures[0], kept.pictures[0]) == np.inf


@pytest.mark.gpu
@pytest.mark.parametrize("index", range(len(golden.REQUESTS)))
@pytest.mark.parametrize(
    ("dtype", "others", "least"),
    [(F32, F32, 55.0), (F16, F32, 55.0), (F16, None, 40.0), (BF16, None, 40.0)],
    ids=["float32", "float16, decoder in float32", "float16", "bfloat16"],
)
def test_the_same_pictures(
    kept: golden.Golden,
    device: torch.device,
    index: int,
    dtype: torch.dtype,
    others: torch.dtype | None,
    least: float,
) -> None:
    if BF16 in (dtype, others or dtype) and not has_bfloat16(device):
        pytest.skip("this GPU has no bfloat16 products")
    sana = golden.model(kept.texts, device, dtype, others=others)
    _, picture = golden.drawn(sana, golden.REQUESTS[index])
    assert golden.decibels(picture, kept.pictures[index]) >= least

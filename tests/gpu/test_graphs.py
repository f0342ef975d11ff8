"""CUDA graphs compute what the same kernels compute one by one, bit for bit."""

from dataclasses import replace

import pytest
import torch

from benchmarks.random_model import random_sana
from opensana.drawing.solving import encode, job_noises, solve
from opensana.request import Request
from opensana.runtime.graphs import Graphs

pytestmark = pytest.mark.gpu
REQUEST = Request("a red fox", width=64, height=64, steps=4, guidance=4.5, seed=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["sana_600m_1024", "sana_1_5_1600m", "sprint_600m"])
@torch.inference_mode()
def test_the_same_bits(preset: str, dtype: torch.dtype, device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("graphs are for CUDA")
    sana = replace(random_sana(preset, device, dtype, tiny=True), graphs=Graphs())
    requests = [
        REQUEST,
        replace(REQUEST, prompt="a blue car in the snow", seed=2),
        replace(REQUEST, images=3),
        replace(REQUEST, guidance=1.0),
        REQUEST,
    ]
    for request in requests:
        if sana.sprint:
            request = replace(request, steps=2)
        job = sana.job(request)
        texts = encode(sana, job)
        found, expected = (
            solve(one, job, texts, job_noises(sana, job))
            for one in (sana, replace(sana, graphs=None))
        )
        assert torch.equal(found, expected)
    assert sana.graphs is not None and 1 < len(sana.graphs) <= 4

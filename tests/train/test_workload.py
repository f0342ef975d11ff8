"""What a device can do: as a recipe says, else measured.

Also tests `train/workload.py`.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from opensana.models import flops
from opensana.models.flops import measured_peak
from opensana.train import workload as train
from opensana.train.engine.parallel import Processes
from opensana.train.monitor import metrics
from opensana.train.workload import workload
from opensana.transformer.model import TransformerConfig
from tests.train.conftest import TRANSFORMER

CARD, APPLE, CPU = (torch.device(name) for name in ("cuda:0", "mps", "cpu"))


def test_a_gpu_is_measured_in_the_format_of_the_run(
    transformer_recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, unless the recipe says what it can do; a CPU is not."""
    asked: list[tuple[torch.device, torch.dtype]] = []
    monkeypatch.setattr(train, "measured_peak", lambda *given: asked.append(given) or 5e12)
    monkeypatch.setattr(train, "transformer_cost", lambda *_, **__: SimpleNamespace(flops=1e6))
    config = TransformerConfig.from_dict(TRANSFORMER)

    def peak(device: torch.device, dtype: str, **parallel: float) -> float:
        recipe = transformer_recipe(dtype=dtype, parallel=parallel)
        work = workload(recipe, config, Processes(count=2, device=device))
        assert (work.flops > 0) == (work.peak > 0)
        if work.peak:
            speeds = work.speeds(2.0)
            assert speeds["mfu"] == work.flops / 2 / work.peak
            assert speeds["peak_flops"] == work.peak
        return work.peak

    freed: list[torch.device | None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(None))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", freed.append)
    monkeypatch.setattr(metrics, "peak_memory", lambda device: 0)
    assert peak(CARD, "bfloat16") == peak(APPLE, "float32") == 10e12
    assert asked == [(CARD, torch.bfloat16), (APPLE, torch.float32)] and freed == [None, CARD]
    assert peak(CARD, "bfloat16", peak_tflops=2.0) == peak(CPU, "float32", peak_tflops=2.0) == 4e12
    assert peak(CPU, "float32") == 0 and len(asked) == 2


def test_products_grow_until_they_outlast_their_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of 1 TFLOPS whose launches take a millisecond, and one too fast to be slowed."""
    monkeypatch.setattr(flops, "_product_time", lambda d, t, side: 1e-3 + 2 * side**3 / 1e12)
    assert measured_peak(CARD, torch.float32) == pytest.approx(1e12, rel=0.1)
    sides: list[int] = []
    monkeypatch.setattr(flops, "_product_time", lambda d, t, side: sides.append(side) or 1e-6)
    assert measured_peak(CARD, torch.float32) == pytest.approx(2 * 16384**3 / 1e-6)
    assert sides == [256, 512, 1024, 2048, 4096, 8192, 16384]


def test_the_products_are_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    monkeypatch.setattr(flops, "LONG_PRODUCT", 0.0)
    multiply = Tensor.__matmul__
    monkeypatch.setattr(
        Tensor, "__matmul__", lambda one, other: found.extend((one, other)) or multiply(one, other)
    )
    before = torch.get_rng_state()
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e6
    assert torch.equal(torch.get_rng_state(), before), "a training's random numbers stay"
    assert all(part.std() > 0.5 for part in found)

"""Training steps on a GPU go where they go on a CPU, and the program of benchmarks runs there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.parts import Setting
from benchmarks.gpu.training import recipe_of, write_random_features
from opensana.runtime.tf32 import settle_float32
from opensana.train.engine.parallel import Processes
from opensana.train.transformer.task import transformer_task
from opensana.transformer.config import TransformerConfig

pytestmark = pytest.mark.gpu
STEPS = 8


@pytest.mark.parametrize("variant", ["adamw_16", "came_16", "muon_16", "adamw_64_recomputed"])
def test_the_same_losses(variant: str, device: torch.device, tmp_path: Path) -> None:
    recipe = recipe_of(Setting("cpu", tiny=True), variant, tmp_path, dtype="float32")
    write_random_features(tmp_path / "cache", TransformerConfig.from_dict(recipe.model or {}))
    losses = []
    for place in (torch.device("cpu"), device):
        task = transformer_task(recipe, Processes(device=place))
        settle_float32(place, full=True)
        losses.append([task.train(i, task.prepare(i))()["loss"] for i in range(STEPS)])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_the_benchmarks_run_in_tiny_shapes(device: torch.device, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--device", device.type]
    done = subprocess.run([*command, "--to", str(tmp_path / "gpu.json")], check=False)
    assert done.returncode == 0

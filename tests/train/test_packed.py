"""Features packed in 8 bits for another machine, and the training within given minutes there."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from opensana.features.latents import Features, Sample, write_features
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.models.load import load_transformer
from opensana.train.recipe import load_recipe

EMOJI = Path(__file__).parents[2] / "recipes" / "emoji"
SAMPLES = 40


def script(name: str) -> ModuleType:
    """A program of recipes/emoji, which imports its neighbours by name."""
    spec = importlib.util.spec_from_file_location(name, EMOJI / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    return script("pack")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every latent twice; captions whose first token is one for all."""
    root, draw = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    first = draw.standard_normal((1, 12)) * 20
    with write_text(root / "text", keys=dict.fromkeys(TEXT_KEYS, "x"), null=first) as texts:
        tails = [draw.standard_normal((1 + i % 4, 12)) for i in range(2 * SAMPLES)]
        texts.add(
            [f"caption {i}" for i in range(2 * SAMPLES)],
            [np.concatenate([first, t]) for t in tails],
        )
    latents = draw.standard_normal((SAMPLES, 4, 2, 2)).repeat(2, axis=0)[:SAMPLES]
    with write_features(root / "all", keys={"resolution": 8}, text=root / "text") as writer:
        samples = [Sample(str(i), (2 * i, 2 * i + 1), (3.0, None)) for i in range(SAMPLES)]
        writer.add(latents, [replaced(sample) for sample in samples])
    return root / "all"


def replaced(sample: Sample) -> Sample:
    return Sample(sample.key, sample.captions, sample.scores, ("one", "two"))


def test_what_is_unpacked_is_what_was_packed(pack: Any, cache: Path, tmp_path: Path) -> None:
    features = Features.open(cache)
    assert pack.write_packed(features, tmp_path / "packed.npz", 2**20) == SAMPLES
    with np.load(tmp_path / "packed.npz") as packed:
        assert len(packed["latents"]) == SAMPLES // 2
        assert len(packed["tokens"]) == 1 + sum(1 + i % 4 for i in range(2 * SAMPLES))
    pack.unpack(tmp_path / "packed.npz", tmp_path / "again")
    again = Features.open(tmp_path / "again")
    assert len(again) == SAMPLES and again.keys == {**features.keys, "bits": 8}
    for row in range(SAMPLES):
        one, other = features.sample(row), again.sample(row)
        assert (other.key, other.scores, other.captioners) == (one.key, one.scores, one.captioners)
        assert np.abs(again.latent(row) - features.latent(row)).max() < 0.03
        for before, after in zip(one.captions, other.captions, strict=True):
            assert again.caption(after) == features.caption(before)
            states = features.texts.of(before).astype(np.float32)
            assert np.abs(again.texts.of(after) - states).max() < 0.2
    errors = pack.errors(features, tmp_path / "packed.npz")
    assert 0 < errors["latents"] < 0.02 and 0 < errors["texts"] < 0.02


def test_what_does_not_fit_is_left_out_evenly(pack: Any, cache: Path, tmp_path: Path) -> None:
    features, target = Features.open(cache), tmp_path / "packed.npz"
    pack.write_packed(features, target, 2**20)
    most = int(0.8 * target.stat().st_size)
    count = pack.write_packed(features, target, most)
    assert SAMPLES // 4 < count < SAMPLES and target.stat().st_size <= most
    pack.unpack(target, tmp_path / "again")
    keys = [int(Features.open(tmp_path / "again").sample(row).key) for row in range(count)]
    assert (keys[0], keys[-1]) == (0, SAMPLES - 1)
    assert max(np.diff(keys)) <= 2 + SAMPLES // count


@pytest.mark.slow
def test_training_within_given_time(
    pack: Any, cache: Path, transformer_recipe, tmp_path: Path, monkeypatch, write_recipe
) -> None:
    """A minute a step, as it is told; the same command goes on, and so do its weights."""
    train_in = script("train_in")
    for name, value in {"SPARED": 0.0, "WARM": 6, "MEASURED": 3, "MOST_BYTES": 4000}.items():
        monkeypatch.setattr(train_in, name, value)
    monkeypatch.setattr(train_in, "step_seconds", lambda _: 60.0)
    pack.write_packed(Features.open(cache), tmp_path / "packed.npz", 2**20)
    recipe = write_recipe(transformer_recipe())
    command = ["train_in.py", str(tmp_path / "packed.npz"), "--recipe", str(recipe)]
    command += ["--run", str(tmp_path / "run"), "--to", str(tmp_path / "weights"), "--batch", "4"]

    def train(*more: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [*command, "--minutes", "10", *more])
        assert train_in.main() == 0
        return json.loads((tmp_path / "weights" / "training.json").read_text())

    first = train()
    stored = load_recipe(tmp_path / "run" / "recipe.toml")
    assert 6 < first["steps"] < 6 + 10 and stored.schedule.decay == "linear"
    assert first["fixed"][-1]["step"] == first["steps"] == stored.steps
    assert train()["steps"] > first["steps"]
    files = list((tmp_path / "weights").glob("*.safetensors"))
    assert len(files) > 1 and all(file.stat().st_size < 16000 for file in files)
    weights = load_transformer(tmp_path / "weights")
    assert {value.dtype for value in weights.state_dict().values()} == {torch.float16}
    command[command.index("--run") + 1] = str(tmp_path / "other")
    assert train("--initial", str(tmp_path / "weights"))["steps"] > 6

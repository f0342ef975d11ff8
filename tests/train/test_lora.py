"""LoRA and prior preservation: only adapters train, runs resume to the bit, exports are right.

Also tests `train/transformer/lora.py` and `train/engine/ema.py`.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from opensana.errors import ConfigError, MissingExtraError
from opensana.features.latents import Sample, write_features
from opensana.flow.loss import flow_matching_loss
from opensana.models.load import load_transformer
from opensana.models.save import write_transformer
from opensana.train.dry_run import plan
from opensana.train.recipe import load_recipe
from opensana.train.transformer.batches import FlowBatch
from opensana.train.transformer.task import train_transformer, transformer_task
from opensana.transformer.initialisation import initialise
from opensana.transformer.model import Transformer, TransformerConfig
from opensana.weights.lora import FILE, merge_lora, read_lora
from opensana.weights.safetensors import read_safetensors
from tests.train.conftest import TRANSFORMER
from tests.train.reading import bits, lines

LORA = {"rank": 2, "alpha": 4, "targets": ["to_q", "to_v", "to_out.0"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of random weights to start from."""
    return stored(tmp_path_factory.mktemp("base") / "transformer", torch.float32)


def stored(folder: Path, dtype: torch.dtype, config: TransformerConfig | None = None) -> str:
    model = Transformer(config or TransformerConfig.from_dict(TRANSFORMER))
    initialise(model, torch.Generator().manual_seed(7), caption_norm=1.0)
    write_transformer(model, folder, dtype=dtype)
    return str(folder)


@pytest.fixture
def lora_recipe(transformer_recipe, base: str):
    def make(**changes):
        return transformer_recipe(**{"model": None, "initial": base, "lora": LORA, **changes})

    return make


@pytest.fixture(scope="module")
def classes(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class samples of another shape and number than one's own."""
    folder = tmp_path_factory.mktemp("classes") / "all"
    latents = torch.randn(5, 4, 1, 4, generator=torch.Generator().manual_seed(8))
    with write_features(folder, keys={}, text=features / "text") as cache:
        cache.add(latents, [Sample(str(i), (i,), (1.0,)) for i in range(5)])
    return folder


def test_only_adapters_train_and_are_saved(lora_recipe, base: str, tmp_path: Path):
    task = transformer_task(lora_recipe())
    frozen = {n for n, p in task.network.trained.named_parameters() if not p.requires_grad}
    assert frozen and all(".lora_" not in name for name in frozen)
    before = {n: v.clone() for n, v in task.network.trained.state_dict().items()}
    for step in range(3):
        task.train(step, task.prepare(step))
    after = task.network.trained.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name}
    for part in ("model", "ema"):
        assert set(task.parts[part].state_tensors()) == changed
    # The average shares what is frozen, so that a large model is held once.
    average = dict(task.network.average.module.named_parameters())
    shared = {n for n, p in task.network.trained.named_parameters() if p is average[n]}
    assert shared == frozen


def test_at_first_the_model_is_the_base(lora_recipe, base: str):
    task = transformer_task(lora_recipe())
    plain = transformer_task(lora_recipe(lora=None))
    assert task.evaluate() == plain.evaluate()


@pytest.mark.parametrize("lora", [LORA, LORA | {"dropout": 0.3}], ids=["plain", "dropout"])
def test_resuming_is_exact(lora_recipe, classes: Path, tmp_path: Path, lora):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"lora": lora, "prior": {"folder": str(classes)}, "batch": 3}
    train_transformer(lora_recipe(run=str(whole), **options))
    train_transformer(lora_recipe(run=str(parts), steps=4, **options))
    train_transformer(lora_recipe(run=str(parts), **options))
    assert bits(whole, 10) == bits(parts, 10)
    # safetensors writes the texts of a header in any order, so that files may differ in theirs.
    first, second = (read_safetensors(run / "export" / FILE) for run in (whole, parts))
    assert first and all(torch.equal(first[name], second[name]) for name in first)


def test_the_export_is_the_average(lora_recipe, base: str, tmp_path: Path):
    recipe = lora_recipe(ema=0.5)
    train_transformer(recipe)
    merged = load_transformer(Path(base))
    merge_lora(merged, read_lora(tmp_path / "run" / "export"))
    task = transformer_task(recipe)
    task.parts["ema"].load_state_tensors(
        read_safetensors(tmp_path / "run" / "checkpoints" / "step-00000010" / "ema.safetensors")
    )
    draw = torch.Generator().manual_seed(1)
    latent, text = torch.randn(2, 4, 2, 2, generator=draw), torch.randn(2, 3, 12, generator=draw)
    timestep = torch.tensor([800.0, 100.0])
    with torch.no_grad():
        ours = merged(latent, timestep, text)
        averaged = task.network.average.module(latent, timestep, text)
        plain = load_transformer(Path(base))(latent, timestep, text)
    torch.testing.assert_close(ours, averaged, atol=1e-5, rtol=1e-5)
    assert (ours - plain).abs().max() > 1e-4


def test_a_lora_learns(lora_recipe, tmp_path: Path):
    train_transformer(
        lora_recipe(
            steps=60,
            batch=8,
            lora=LORA | {"rank": 8, "alpha": 8},
            optimizer={"lr": 3e-2},
            checkpoint={"every": 60, "keep": 1},
            evaluate={"every": 60, "pictures": 8, "batch": 8},
        )
    )
    fixed = [line["fixed_loss"] for line in lines(tmp_path / "run") if "fixed_loss" in line]
    assert fixed[-1] < 0.9 * fixed[0]


def test_the_loss_is_the_own_plus_the_weighted_prior(lora_recipe, features: Path, classes: Path):
    prior = {"folder": str(classes), "weight": 0.25}
    task = transformer_task(lora_recipe(prior=prior, batch=4, accumulate=2))
    batch = task.prepare(0)
    assert [(part.latents.shape[2:], part.weight) for part in batch] == (
        [((2, 2), 1.0)] * 2 + [((1, 4), 0.25)] * 2
    )
    assert sum(len(part.latents) for part in batch[:2]) == 4
    assert sum(len(part.latents) for part in batch[2:]) == 4

    def loss(part: FlowBatch) -> torch.Tensor:
        velocity = task.network.velocity_for(part)
        return flow_matching_loss(velocity, part.latents, part.noise, part.sigma)

    own, of_prior = (torch.cat([loss(p) for p in parts]).mean() for parts in (batch[:2], batch[2:]))
    parameters = task.optimizer.parameters
    expected = torch.autograd.grad(own + 0.25 * of_prior, parameters)
    task.optimizer.step = lambda **_: None
    values = task.train(0, batch)()
    norm = torch.cat([gradient.flatten() for gradient in expected]).norm()
    assert values["gradient"] == pytest.approx(float(norm), rel=1e-4)
    assert values["loss"] == pytest.approx(own.item(), rel=1e-5)
    assert values["prior_loss"] == pytest.approx(of_prior.item(), rel=1e-5)


def test_class_samples_are_drawn_independently(lora_recipe, features: Path):
    """The same folder twice: other places, captions and noises, and each once an epoch."""
    task = transformer_task(lora_recipe(prior={"folder": str(features)}, batch=4))
    for step in range(3):
        own, prior = task.prepare(step)
        assert own.names != prior.names
        assert not torch.equal(own.noise, prior.noise) and not torch.equal(own.sigma, prior.sigma)
    seen = [sample for step in range(2) for _, sample in task.streams[1].order(step)]
    assert sorted(seen) == list(range(8))


def test_full_training_takes_a_prior_too(transformer_recipe, features: Path, tmp_path: Path):
    prior = {"folder": str(features), "weight": 0.5}
    train_transformer(transformer_recipe(prior=prior, steps=2, console_seconds=0.0))
    assert any("prior_loss" in line for line in lines(tmp_path / "run"))


def test_a_prior_of_another_model_is_refused(lora_recipe, tmp_path: Path, features: Path):
    folder = tmp_path / "other"
    with write_features(folder, keys={}, text=features / "text") as cache:
        cache.add(np.zeros((1, 6, 2, 2)), [Sample("x", (0,), (1.0,))])
    with pytest.raises(ConfigError, match=r"in_channels is 4, but the features in .*other have 6"):
        transformer_task(lora_recipe(prior={"folder": str(folder)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rnak": 4}}, r"unknown key 'lora.rnak' \(did you mean 'rank'\?\)"),
        ({"lora": {"rank": 0}}, "`lora.rank` is 0; it must be 1 or more"),
        ({"lora": {"alpha": 0}}, "`lora.alpha` is 0"),
        ({"lora": {"dropout": 1.0}}, "`lora.dropout` is 1.0"),
        ({"lora": {"targets": []}}, "`lora.targets` is"),
        ({"initial": None, "model": TRANSFORMER}, "`initial` is None"),
        ({"parallel": {"mode": "fsdp"}}, "`parallel.mode` is 'fsdp'"),
        ({"prior": {"folder": "x", "wieght": 1}}, "did you mean 'weight'"),
        ({"prior": {"folder": "x", "weight": 0}}, "`prior.weight` is 0"),
    ],
)
def test_bad_recipes(lora_recipe, changes, message: str):
    with pytest.raises(ConfigError, match=message):
        lora_recipe(**changes)


def test_a_recipe_is_written_and_read_back(lora_recipe, write_recipe, features: Path):
    recipe = lora_recipe(prior={"folder": str(features), "weight": 2.0})
    assert load_recipe(write_recipe(recipe)) == recipe


def test_wrong_targets(lora_recipe):
    with pytest.raises(ConfigError, match=r"'to_out\.1' names no linear layer"):
        transformer_task(lora_recipe(lora=LORA | {"targets": ["to_out.1"]}))


def test_without_peft(lora_recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"opensana\[lora\]"):
        transformer_task(lora_recipe())


def test_the_plan_counts_adapters(lora_recipe, features: Path):
    worked_out = plan(lora_recipe(prior={"folder": str(features)}), processes=1)
    alone = plan(lora_recipe(), processes=1)
    task = transformer_task(lora_recipe())
    adapters = sum(p.numel() for p in task.optimizer.parameters)
    assert worked_out.trained == worked_out.saved == adapters < worked_out.parameters / 2
    assert worked_out.memory.gradients == worked_out.memory.average == 4 * adapters
    assert worked_out.checkpoint == 4 * 4 * adapters
    assert worked_out.flops == 2 * alone.flops and worked_out.tokens == 2 * alone.tokens


# ------------------------------------------------------------------ what may be trained on


def test_own_half_precision_is_a_start(lora_recipe, tmp_path: Path):
    initial = stored(tmp_path / "own", torch.float16)
    task = transformer_task(lora_recipe(initial=initial))
    assert {p.dtype for p in task.network.trained.parameters()} == {torch.float32}


def test_the_packaged_model_is_a_start(transformer_recipe):
    from opensana.train.transformer.initial import initial_transformer

    model = initial_transformer(transformer_recipe(model=None, initial="emoji-256"))
    assert model.dtype == torch.float32


@pytest.mark.parametrize("name", ["Sana_600M_512px_diffusers", "Sana_1600M_1024px"])
def test_published_float16_models_are_refused(lora_recipe, tmp_path: Path, name: str):
    for initial in (tmp_path / name, tmp_path / name / "transformer"):
        stored(tmp_path / name / "transformer", torch.float32)
        (tmp_path / name / "model_index.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"made for float16.*collapse.*BF16"):
            transformer_task(lora_recipe(initial=str(initial)))


def test_a_lone_float16_variant_is_refused(lora_recipe, tmp_path: Path):
    folder = Path(stored(tmp_path / "variant", torch.float16))
    plain = folder / "diffusion_pytorch_model.safetensors"
    plain.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ConfigError, match="made for float16"):
        transformer_task(lora_recipe(initial=str(folder)))


def test_published_bfloat16_models_are_a_start(lora_recipe, tmp_path: Path):
    folder = tmp_path / "Sana_1600M_1024px_BF16_diffusers"
    stored(folder / "transformer", torch.bfloat16)
    (folder / "model_index.json").write_text("{}")
    assert transformer_task(lora_recipe(initial=str(folder))).network.trained.dtype == torch.float32

"""The dry run: its numbers are those of the model as 32 processes would really hold it.

Also tests `models/flops.py` and `train/optim/sizes.py`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.cli import main
from opensana.errors import ConfigError
from opensana.models.flops import autoencoder_cost, transformer_cost
from opensana.models.presets import TRANSFORMERS
from opensana.train.dry_run import plan
from opensana.train.engine.parallel import shard
from opensana.train.engine.shards import local
from opensana.train.monitor.metrics import Workload
from opensana.train.optim.optimizers import Optimizers
from opensana.train.recipe import ParallelRecipe, TransformerRecipe, load_recipe
from opensana.train.transformer.initial import initial_transformer
from opensana.train.workload import peak_of
from opensana.transformer.model import Transformer, TransformerConfig
from tests.train.conftest import AUTOENCODER, TRANSFORMER

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "sana").glob("*.toml"))
PROCESSES = 32


@pytest.fixture
def fake_processes() -> Iterator[None]:
    """This is the first of 32 processes, as far as torch can tell."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=PROCESSES)
    yield
    dist.destroy_process_group()


def sana(path: Path) -> TransformerRecipe:
    recipe = load_recipe(path, ["parallel.peak_tflops=312"])
    assert isinstance(recipe, TransformerRecipe)
    return recipe


def held_bytes(tensors) -> int:
    return sum(local(tensor).numel() * 4 for tensor in tensors)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_stages_on_thirty_two_processes(path: Path, fake_processes: None):
    recipe = sana(path)
    found = plan(recipe, processes=PROCESSES)
    assert recipe.model is not None
    with torch.device("meta"):
        model = shard(Transformer(TransformerConfig.from_dict(recipe.model)), half=True)
    optimizer = Optimizers(dict(model.named_parameters()), recipe.optimizer)
    (came,) = optimizer.parts
    state = [slot for p in model.parameters() for slot in came.fresh(p).values()]  # pyright: ignore
    assert found.memory.weights == held_bytes(model.parameters()) == found.memory.average
    assert found.memory.gradients == found.memory.weights
    assert found.memory.optimizer == held_bytes(state)
    assert found.parameters in (591_747_872, 1_604_462_752)
    assert found.samples * PROCESSES == recipe.batch
    assert found.rate == pytest.approx(1e-4 * (recipe.batch / 256) ** 0.5)
    assert found.memory.total < 80e9, "fits a device of 80 GB"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_stages_are_the_published_architectures(path: Path):
    recipe, size = sana(path), path.stem.partition("-")[0]
    stage = path.stem.rpartition("-")[2]
    assert recipe.model is not None
    config = TransformerConfig.from_dict(recipe.model)
    known = TRANSFORMERS.get(f"sana_{size}_{stage}")
    assert known == config or (size == "600m" and stage in ("2k", "4k"))
    before = [other for other in RECIPES if other.stem.startswith(size) and other < path]
    if before:
        assert recipe.initial == f"{sana(before[-1]).run}/export/transformer"
    else:
        assert recipe.initial is None


def test_operations_are_three_times_those_of_the_products():
    """A hand count of 0.6B at 512: products of image and text tokens, forward, times three."""
    config = TRANSFORMERS["sana_600m_512"]
    width, tokens, text = config.width, 256, 300
    image = (4 + 2 + 3 * config.mlp_ratio) * width**2 + 9 * 2 * config.hidden
    attention = 2 * tokens * width * 33 + 2 * tokens * text * width
    block = tokens * image + 2 * text * width**2 + attention
    captions = text * (config.caption_channels * width + width**2)
    expected = 3 * 2 * (config.num_layers * block + captions)
    found = transformer_cost(config, samples=1, dtype=torch.bfloat16)
    assert found.flops == pytest.approx(expected, rel=0.02)
    two, four = (transformer_cost(config, samples=n, dtype=torch.bfloat16) for n in (2, 4))
    assert two.flops == pytest.approx(2 * found.flops, rel=0.02)
    assert four.kept == pytest.approx(2 * two.kept, rel=0.01)
    assert four.kept_with_recomputing < four.kept / 10


def test_blocks_are_counted_as_a_whole_model_is_measured():
    """Depth four from one and two blocks, against all four."""
    four = TransformerConfig.from_dict({**TRANSFORMER, "num_layers": 4})
    whole = transformer_cost(four, samples=3, dtype=torch.float32)
    one, two = (
        transformer_cost(
            TransformerConfig.from_dict({**TRANSFORMER, "num_layers": depth}),
            samples=3,
            dtype=torch.float32,
        )
        for depth in (1, 2)
    )
    assert whole.kept == 3 * two.kept - 2 * one.kept and whole.blocks == 4


def test_frozen_layers_keep_less():
    with torch.device("meta"):
        model = Autoencoder(AutoencoderConfig.from_dict(AUTOENCODER))
    every = autoencoder_cost(model, samples=2, crop=16)
    model.encoder.requires_grad_(False)
    assert 0 < autoencoder_cost(model, samples=2, crop=16).kept < every.kept


def test_ddp_holds_everything(transformer_recipe):
    one, four = (plan(transformer_recipe(), processes=n) for n in (1, 4))
    assert four.memory.weights == one.memory.weights == 4 * one.parameters
    assert four.samples == 1 and four.tokens == one.tokens == 4 * 4
    assert one.memory.optimizer == 8 * one.parameters


def test_the_size_of_a_checkpoint_is_foreseen(transformer_recipe, tmp_path: Path):
    from opensana.train.transformer.task import train_transformer

    recipe = transformer_recipe(steps=1)
    train_transformer(recipe)
    folder = tmp_path / "run" / "checkpoints" / "step-00000001"
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    found = plan(recipe, processes=1).checkpoint
    assert found < size < found + 40_000, "the names of the tensors come on top"


def test_an_autoencoder_has_a_plan(autoencoder_recipe):
    text = str(plan(autoencoder_recipe(), processes=2))
    assert "4 = 2 processes x 1 micro-batches x 2 samples" in text and "samples/s" in text


def test_the_command_prints_and_trains_nothing(transformer_recipe, write_recipe, tmp_path, capsys):
    path = str(write_recipe(transformer_recipe(optimizer={"lr": 1e-3, "scale": "sqrt"})))
    assert main(["train", path, "--dry-run", "--processes", "2"]) == 0
    said = capsys.readouterr().out
    for line in ("2 (ddp)", "learning rate  0.000125", "memory", "tokens/s", "checkpoints    2 of"):
        assert line in said
    assert not (tmp_path / "run").exists()


def test_wrong_numbers_of_processes_are_refused(transformer_recipe, write_recipe, capsys):
    path = str(write_recipe(transformer_recipe()))
    assert main(["train", path, "--dry-run", "--processes", "3"]) != 0
    assert "must be a multiple of 3" in capsys.readouterr().err
    assert main(["train", path, "--processes", "2"]) == 2
    assert "torchrun" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="`processes` is 0"):
        plan(transformer_recipe(), processes=0)


def test_speeds():
    work = Workload(samples=8, tokens=80, flops=100.0, peak=50.0)
    found = work.speeds(4.0)
    assert found["samples_per_second"] == 2 and found["tokens_per_second"] == 20
    assert found["mfu"] == 0.5 and found["peak_memory"] > 1e6
    assert "mfu" not in Workload(8).speeds(1.0)
    assert peak_of(ParallelRecipe(peak_tflops=2.0), torch.device("cpu")) == 2e12


def test_a_stage_goes_on_with_positions(transformer_recipe, tmp_path: Path):
    from opensana.train.transformer.task import train_transformer

    train_transformer(transformer_recipe(steps=1))
    initial = str(tmp_path / "run" / "export" / "transformer")
    larger = {**TRANSFORMER, "sample_size": 4, "interpolation_scale": 1.0}
    model = initial_transformer(transformer_recipe(initial=initial, model=larger))
    before = initial_transformer(transformer_recipe(initial=initial, model=None))
    assert model.config.interpolation_scale == 1.0 and model.config.sample_size == 4
    assert all(p.requires_grad for p in model.parameters())
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    wrong = {**TRANSFORMER, "num_layers": 1}
    with pytest.raises(ConfigError, match="differ in more than sample_size"):
        initial_transformer(transformer_recipe(initial=initial, model=wrong))

"""Training a ControlNet: the base stays, the condition is followed, diffusers reads it.

Also tests `train/transformer/controlnet.py`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opensana.config import build, to_toml
from opensana.errors import ConfigError, DataError
from opensana.features.latents import Features, Sample, write_features
from opensana.models.flops import transformer_cost
from opensana.models.load import load_controlnet, load_transformer
from opensana.models.save import write_transformer
from opensana.train.autoencoder.task import train_autoencoder
from opensana.train.dry_run import plan
from opensana.train.recipe import ControlNetRecipe, load_recipe
from opensana.train.transformer.controlnet import (
    ControlledNetwork,
    controlnet_task,
    train_controlnet,
)
from opensana.train.transformer.lora import trained_parameters
from opensana.train.transformer.task import FlowTask
from opensana.transformer.controlnet import Controlled
from opensana.transformer.model import Transformer, TransformerConfig
from opensana.weights.safetensors import read_safetensors
from tests.tiny import randomise
from tests.train.conftest import COMMON, TRANSFORMER
from tests.train.reading import bits, lines

LAYERS = 3
Cache = Callable[..., Path]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig.from_dict({**TRANSFORMER, "num_layers": LAYERS}))
    randomise(model, 0, scale=0.1)
    write_transformer(model, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def cache(tmp_path: Path, features: Path) -> Cache:
    """A cache of latents with the keys 0, 1, ... or others, all with the same two captions."""

    def make(name: str, latents: torch.Tensor, keys: list[str] | None = None, **made: Any) -> Path:
        names = keys or [str(index) for index in range(len(latents))]
        with write_features(tmp_path / name, keys=made, text=features / "text") as writer:
            writer.add(latents, [Sample(key, (0, 1), (1.0, 1.0)) for key in names])
        return tmp_path / name

    return make


@pytest.fixture
def recipe(tmp_path: Path, base: Path, cache: Cache) -> Callable[..., ControlNetRecipe]:
    """Samples that only their conditions tell apart: each is the negative of its condition."""
    latents = torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    data = {
        "folder": str(cache("samples", latents)),
        "condition": str(cache("conditions", -latents.flip(0), list("76543210"))),
    }

    def make(**changes: Any) -> ControlNetRecipe:
        values = {
            "kind": "controlnet",
            "name": "tiny",
            "run": str(tmp_path / "run"),
            "steps": 10,
            "batch": 4,
            "initial": str(base),
            "blocks": 2,
            "samples": {"every": 10},
            **COMMON,
            **changes,
            "data": {**data, **changes.get("data", {})},
        }
        given = {name: value for name, value in values.items() if value is not None}
        return build(ControlNetRecipe, given, where="test")

    return make


def networks(task: FlowTask) -> ControlledNetwork:
    assert isinstance(task.network, ControlledNetwork)
    return task.network


def fixed_losses(run: Path) -> list[float]:
    return [line["fixed_loss"] for line in lines(run) if "fixed_loss" in line]


def test_the_condition_is_followed_and_the_base_stays(recipe, base: Path, tmp_path: Path) -> None:
    """The captions are alike: a transformer that ignored the conditions could not tell these."""
    given = recipe(
        steps=120,
        batch=8,
        optimizer={"lr": 1e-2},
        checkpoint={"every": 120, "keep": 1},
        evaluate={"every": 120, "pictures": 8, "batch": 8},
    )
    before = read_safetensors(base)
    train_controlnet(given)
    losses = fixed_losses(tmp_path / "run")
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, before[n]) for n, value in read_safetensors(base).items())

    # Another sample's condition leads to another place.
    task = controlnet_task(given)
    transformer = load_transformer(base)
    control = load_controlnet(tmp_path / "run" / "export", transformer.config)
    batch, network = task.fixed[0], Controlled(transformer, control)
    assert batch.condition is not None
    x, timestep = batch.noise, torch.full((8,), 1000.0)
    target = batch.noise - batch.latents
    errors = [
        (network(x, timestep, batch.states, batch.mask, condition) - target).square().mean()
        for condition in (batch.condition, batch.condition.roll(1, 0))
    ]
    assert errors[0] < 0.5 * errors[1]


def test_resuming_is_exact(recipe, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_controlnet(recipe(run=str(whole)))
    train_controlnet(recipe(run=str(parts), steps=5))
    train_controlnet(recipe(run=str(parts)))
    assert bits(whole) == bits(parts)


def test_only_blocks_and_projections_change(recipe, base: Path, tmp_path: Path) -> None:
    train_controlnet(recipe())
    before, after = read_safetensors(base), read_safetensors(tmp_path / "run/export/controlnet")
    same = {name for name in after if name in before and torch.equal(before[name], after[name])}
    embeddings = ("patch_embed", "time_embed", "caption_projection", "caption_norm")
    assert same >= {name for name in after if name.startswith(embeddings)}
    assert not [name for name in same if name.startswith("transformer_blocks.0.attn1.to_q")]
    assert all(after[name].any() for name in after if name.startswith("controlnet_blocks"))


def test_a_begun_one_goes_on(recipe, tmp_path: Path) -> None:
    train_controlnet(recipe())
    export = tmp_path / "run" / "export"
    task = controlnet_task(recipe(control=str(export), run=str(tmp_path / "next")))
    state = read_safetensors(export / "controlnet")
    begun = task.network.trained.state_dict()
    assert all(torch.equal(state[name], value) for name, value in begun.items())


def test_diffusers_reads_the_export(recipe, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    train_controlnet(recipe())
    folder = tmp_path / "run" / "export"
    theirs = diffusers.SanaControlNetModel.from_pretrained(folder, subfolder="controlnet").eval()
    task = controlnet_task(recipe())
    ours = load_controlnet(folder, networks(task).base.config)
    batch = task.fixed[0]
    assert batch.condition is not None
    timestep = torch.full((len(batch.noise),), 500.0)
    found = ours(batch.noise, timestep, batch.states, batch.mask, batch.condition)
    with torch.no_grad():
        expected = theirs(
            batch.noise,
            encoder_hidden_states=batch.states,
            encoder_attention_mask=batch.mask.long(),
            timestep=timestep,
            controlnet_cond=batch.condition,
        ).controlnet_block_samples
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_pictures_are_drawn(recipe, autoencoder_recipe, tmp_path: Path) -> None:
    first = tmp_path / "autoencoder"
    train_autoencoder(autoencoder_recipe(run=str(first), steps=1))
    train_controlnet(recipe(samples={"every": 10, "autoencoder": str(first / "export")}))
    assert (tmp_path / "run" / "samples" / "step-00000010.png").is_file()


@pytest.mark.parametrize(
    ("keys", "made", "shape", "problem"),
    [
        (list("1234567x"), {}, (2, 2), "1 of 8 samples have no condition .* first is '0'"),
        (None, {"autoencoder": "other"}, (2, 2), "made with another autoencoder"),
        (None, {}, (4, 1), r"the condition of '0' .* \[4, 4, 1\], its sample \[4, 2, 2\]"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(
    recipe, cache: Cache, keys: Any, made: Any, shape: Any, problem: str
) -> None:
    other = cache("others", torch.zeros(8, 4, *shape), keys, **made)
    with pytest.raises(DataError, match=problem):
        controlnet_task(recipe(data={"condition": str(other)}))


def test_conditions_are_matched_by_key(recipe) -> None:
    task = controlnet_task(recipe())
    batch = task.prepare(0)[0]
    assert batch.condition is not None
    torch.testing.assert_close(batch.condition, -batch.latents)
    assert Features.open(task.recipe.data.folder).sample(0).key == "0"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"blocks": LAYERS}, "copies 1 to 2 blocks"),
        ({"initial": None}, "'initial' is missing; name the transformer that it steers"),
        ({"model": TRANSFORMER}, "unknown key 'model'; leave it out: `initial` brings its own"),
        ({"lora": {"rank": 4}}, "unknown key 'lora'; leave it out for a controlnet"),
        ({"prior": {"folder": "x"}}, "unknown key 'prior'; leave it out for a controlnet"),
        ({"parallel": {"mode": "fsdp"}}, "ddp for a controlnet"),
        ({"samples": {"prompts": ["caption 0"]}}, "samples.prompts"),
        ({"data": {"condition": None}}, "data.condition"),
    ],
)
def test_wrong_recipes_are_refused(recipe, changes: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        controlnet_task(recipe(**changes))


def test_a_recipe_file_is_read_back(recipe, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe()))
    assert load_recipe(path) == recipe()


def test_the_dry_run_counts_what_trains_and_what_is_frozen(recipe) -> None:
    found, steered = plan(recipe(), processes=1), networks(controlnet_task(recipe()))
    assert found.trained == sum(p.numel() for p in trained_parameters(steered.trained).values())
    assert found.parameters == sum(p.numel() for p in steered.network.parameters())
    alone = transformer_cost(steered.base.config, samples=found.samples, dtype=torch.float32)
    assert 2 / 3 * alone.flops < found.flops < 2 * alone.flops
    assert alone.kept / 2 < found.memory.activations < 2 * alone.kept

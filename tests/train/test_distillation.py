"""Distillation: its objective against finite differences, a whole small run, resuming.

Also tests `flow/consistency.py`, `train/distillation/task.py`, `train/distillation/student.py` and
`train/distillation/discriminator.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensana.config import build
from opensana.errors import ConfigError
from opensana.flow.consistency import change_along, consistency_loss
from opensana.flow.timesteps import network_timestep
from opensana.models.load import load_transformer
from opensana.models.save import write_transformer
from opensana.train import load_recipe
from opensana.train.distillation.discriminator import tokens_behind
from opensana.train.distillation.student import student_of
from opensana.train.distillation.task import DistillationTask, distil
from opensana.train.dry_run import plan
from opensana.train.recipe import DistillationRecipe
from opensana.train.transformer.task import train_transformer
from opensana.transformer.conditioning import FREQUENCIES, TimeEmbedding
from opensana.transformer.model import Transformer, TransformerConfig
from tests import tiny
from tests.train.conftest import BY_WEIGHT, COMMON, TRANSFORMER
from tests.train.reading import bits, lines

# torch's own forward derivatives are scripted when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def test_the_exact_consistency_function_of_a_linear_flow_does_not_change() -> None:
    # dx/dsigma = a x ends at x exp(-a sigma): v = x (1 - exp(-a sigma)) / sigma.
    a = 0.7

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma[:, None, None, None]
        return x * (1 - torch.exp(-a * level)) / level

    x = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.4, 0.8, 1.0], dtype=torch.float64)
    _, change = change_along(velocity, x, sigma, a * x)
    assert change.abs().max() < 1e-6
    _, other = change_along(velocity, x, sigma, 2 * a * x)
    assert other.abs().max() > 0.1


def test_the_change_is_what_finite_differences_find() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = tiny.transformer(replace(tiny.TRANSFORMER, qk_norm="rms_norm_across_heads"))
    student = student_of(teacher, generator=generator)
    x, flow = torch.randn(2, 2, 8, 2, 2, generator=generator)
    sigma, h = torch.tensor([0.3, 0.9]), 1e-3
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        text = student.prepare_text(torch.randn(2, 5, 16, generator=generator))

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            return student.velocity(x, sigma, text, guidance=torch.tensor([1.0, 3.0]))

        def answer(step: float) -> Tensor:
            level = sigma + step
            return x + step * flow - level[:, None, None, None] * velocity(x + step * flow, level)

        v, change = change_along(velocity, x, sigma, flow)
        assert torch.allclose(v, velocity(x, sigma))
        slope = (answer(h) - answer(-h)) / (2 * h)
        _, calm = change_along(velocity, x, sigma, flow, warmth=0.0)
    assert (change - slope).norm() < 0.01 * slope.norm()
    assert torch.allclose(calm, flow - v, atol=1e-5)


def test_the_loss_leads_along_the_change_with_a_length_near_one() -> None:
    v = torch.zeros(2, 3, 4, 4, requires_grad=True)
    change = torch.stack([torch.full((3, 4, 4), 5.0), torch.full((3, 4, 4), 1e-4)])
    consistency_loss(v, v.detach(), change).sum().backward()
    assert v.grad is not None
    lengths = v.grad.flatten(1).norm(dim=1) / 2
    assert lengths[0] == pytest.approx(1, abs=0.01)
    assert lengths[1] < 0.01
    assert (v.grad[0] < 0).all()


def test_a_student_begins_as_its_teacher_at_any_guidance() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = tiny.transformer()
    # A trained teacher answers smoothly to the time: here it hears the slow sines alone.
    of_time = cast(TimeEmbedding, teacher.time_embed).timestep_embedder.linear_1.weight
    of_time.view(-1, 2, FREQUENCIES)[..., :96] = 0
    student = student_of(teacher, generator=generator)
    x, text = torch.randn(3, 8, 2, 2, generator=generator), torch.randn(3, 5, 16)
    sigma = torch.tensor([0.2, 0.6, 1.0])
    with torch.no_grad():
        wanted = teacher(x, network_timestep(sigma, truncated=True), text)
        low, high = (student(x, sigma, text, guidance=torch.full((3,), g)) for g in (1.0, 5.0))
    assert torch.equal(low, high)
    assert (low - wanted).norm() < 0.05 * wanted.norm()
    with pytest.raises(ConfigError, match="few-step model already"):
        student_of(student, generator=generator)


def test_tokens_behind_blocks_are_what_the_next_block_reads() -> None:
    teacher = tiny.transformer()
    with tokens_behind(teacher, [0, 1]) as tokens:
        teacher(torch.randn(1, 8, 2, 2), torch.tensor([500.0]), torch.randn(1, 3, 16))
    assert [part.shape for part in tokens] == [(1, 4, 16)] * 2
    assert not teacher.blocks[0]._forward_hooks


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def recipe(tmp_path: Path, features: Path) -> Callable[..., DistillationRecipe]:
    """A random teacher of two blocks, and the cached features of all tests."""
    torch.manual_seed(0)
    teacher = Transformer(TransformerConfig.from_dict(TRANSFORMER))
    tiny.randomise(teacher, 0, scale=0.1)
    write_transformer(teacher, tmp_path / "teacher")

    def make(**changes: Any) -> DistillationRecipe:
        values = {
            "kind": "distillation",
            "name": "tiny",
            "run": str(tmp_path / "run"),
            "steps": 10,
            "batch": 4,
            "initial": str(tmp_path / "teacher"),
            "data": {"folder": str(features), "dropout": 0.0, **BY_WEIGHT},
            "consistency": {"guidance": [1.0, 2.0], "warmup": 5},
            "adversary": {"blocks": [0, 1], "width": 8},
            "samples": {"every": 10, "steps": 2, "guidance": 1.0},
            **COMMON,
            **changes,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return build(DistillationRecipe, given, where="test")

    return make


@pytest.mark.slow
def test_one_step_comes_nearer_to_the_teachers_twenty(
    recipe, transformer_recipe, tmp_path: Path
) -> None:
    whole = {"steps": 300, "batch": 8, "checkpoint": {"every": 300, "keep": 1}}
    whole["evaluate"] = {"every": 300, "pictures": 8, "batch": 8}
    train_transformer(transformer_recipe(**whole, run=str(tmp_path / "teaching")))
    distil(
        recipe(
            **whole,
            initial=str(tmp_path / "teaching" / "export" / "transformer"),
            optimizer={"lr": 1e-3},
            consistency={"guidance": [1.0], "warmup": 20, "noise": 0.3},
            adversary={"weight": 0.0, "blocks": [1], "width": 8},
        )
    )
    found = [line["fixed_loss"] for line in lines(tmp_path / "run") if "fixed_loss" in line]
    assert found[-1] < 0.5 * found[0]


def test_resuming_is_exact(recipe, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    distil(recipe(run=str(whole)))
    distil(recipe(run=str(parts), steps=5))
    distil(recipe(run=str(parts)))
    assert bits(whole) == bits(parts)


def test_the_adversary_and_the_student_see_each_other(recipe, tmp_path: Path) -> None:
    distil(recipe())
    steps = [line for line in lines(tmp_path / "run") if "adversary" in line]
    assert steps
    task = DistillationTask(recipe(run=str(tmp_path / "other")))
    both = [*task.student.parameters(), *task.discriminator.parameters()]
    before = [p.clone() for p in both]
    teacher = {name: value.clone() for name, value in task.teacher.state_dict().items()}
    task.train(0, task.prepare(0))
    assert sum(not torch.equal(*pair) for pair in zip(before, both, strict=True)) > 40
    assert all(torch.equal(value, teacher[n]) for n, value in task.teacher.state_dict().items())


def test_diffusers_reads_the_export(recipe, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    distil(recipe(initial=str(normed_teacher(tmp_path))))
    folder = tmp_path / "run" / "export" / "transformer"
    theirs = diffusers.SanaTransformer2DModel.from_pretrained(folder).eval()
    ours = load_transformer(folder)
    x, text = torch.randn(2, 4, 2, 2), torch.randn(2, 3, 12)
    sigma, scale = torch.tensor([0.4, 1.0]), torch.tensor([1.5, 1.5])
    with torch.no_grad():
        found = ours(x, sigma, text, guidance=scale)
        expected = theirs(
            x, encoder_hidden_states=text, timestep=sigma, guidance=0.1 * scale
        ).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def normed_teacher(folder: Path) -> Path:
    """diffusers knows few-step models with normed queries only."""
    config = TransformerConfig.from_dict({**TRANSFORMER, "qk_norm": "rms_norm_across_heads"})
    teacher = Transformer(config)
    tiny.randomise(teacher, 1, scale=0.1)
    write_transformer(teacher, folder / "normed")
    return folder / "normed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": TRANSFORMER}, "unknown key 'model'; leave it out: `initial` brings its own"),
        ({"initial": None}, "'initial' is missing; name the teacher, a transformer"),
        ({"lora": {"rank": 4}}, "unknown key 'lora'; leave it out for a distillation"),
        ({"prior": {"folder": "x"}}, "unknown key 'prior'; leave it out for a distillation"),
        ({"accumulate": 2}, "`accumulate` is 2; it must be 1 for a distillation"),
        ({"data": {"folder": "x", "repeat": 2}}, "`data.repeat` is 2; it must be 1"),
        ({"consistency": {"guidance": [0.5]}}, "consistency.guidance"),
        ({"consistency": {"noise": 2.0}}, "consistency.noise"),
        ({"adversary": {"blocks": [0], "width": 9}}, "adversary.width"),
    ],
)
def test_a_wrong_recipe_is_refused(recipe, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recipe(**changes)


def test_the_keys_of_stored_recipes_are_still_read(recipe) -> None:
    """Those that a distillation cannot change stand in every recipe that a checkpoint holds."""
    kept = {"accumulate": 1, "caption_norm": 0.01, "standardise_captions": False}
    data = {**recipe().data.__dict__, "repeat": 1}
    assert recipe(**kept, data=data) == recipe()


def test_blocks_that_the_teacher_lacks_are_refused(recipe) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        DistillationTask(recipe(adversary={"blocks": [0, 2], "width": 8}))


def test_there_is_no_dry_run(recipe) -> None:
    with pytest.raises(ConfigError, match="no dry run"):
        plan(recipe(), processes=1)


def test_the_recipe_of_emoji_256_is_valid() -> None:
    assert isinstance(load_recipe("recipes/emoji/sprint.toml"), DistillationRecipe)

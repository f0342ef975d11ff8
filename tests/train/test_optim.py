"""Optimisers: Muon on matrices alone, state that round-trips to the bit, schedules.

Also tests `train/optim/optimizers.py`.
"""

import pytest
import torch
from torch import nn

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.errors import CheckpointError
from opensana.train.optim.optimizers import (
    Muon,
    Optimizers,
    is_matrix,
    learning_rate,
    orthogonalise,
)
from opensana.train.recipe import OptimizerRecipe, ScheduleRecipe
from opensana.transformer.model import Transformer, TransformerConfig
from tests.train.conftest import AUTOENCODER, TRANSFORMER


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 1), nn.SiLU(), nn.Conv2d(8, 4, 1)
    )
    return layers.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def advance(model: nn.Module, optimizer: Optimizers, steps: range) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(2, 3, 8, 8, generator=draw).to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step(lr=1e-2)


@pytest.mark.parametrize("name", ["adamw", "came", "muon"])
def test_state_round_trips_to_the_bit(name):
    recipe = OptimizerRecipe(name=name, weight_decay=0.1)
    whole, first = network(), network()
    advance(whole, Optimizers(dict(whole.named_parameters()), recipe), range(6))
    before = Optimizers(dict(first.named_parameters()), recipe)
    advance(first, before, range(3))
    second = network()
    second.load_state_dict(first.state_dict())
    after = Optimizers(dict(second.named_parameters()), recipe)
    after.load_state_tensors({k: v.contiguous() for k, v in before.state_tensors().items()})
    advance(second, after, range(3, 6))
    for expected, got in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("name", ["adamw", "came", "muon"])
def test_a_step_that_is_not_finite_changes_no_parameter(name):
    model = network()
    optimizer = Optimizers(
        dict(model.named_parameters()), OptimizerRecipe(name=name, weight_decay=0.1)
    )
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    for found_inf, moved in ((1.0, False), (None, True)):
        optimizer.step(lr=1e-2, found_inf=None if found_inf is None else torch.tensor(found_inf))
        for one, other in zip(before, model.parameters(), strict=True):
            assert torch.equal(one, other) != moved


@pytest.mark.parametrize("name", ["adamw", "came", "muon"])
def test_a_flag_that_is_not_set_changes_no_number(name):
    recipe, models = OptimizerRecipe(name=name, weight_decay=0.1), [network(), network()]
    optimizers = [Optimizers(dict(model.named_parameters()), recipe) for model in models]
    for step in range(3):
        for model, optimizer, flag in zip(models, optimizers, (None, torch.zeros(())), strict=True):
            draw = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=draw)
            optimizer.step(lr=1e-2, found_inf=flag)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_fused_adamw_agrees_with_the_plain_one_in_channels_last():
    fused, plain = network(), network()
    advance(fused, Optimizers(dict(fused.named_parameters()), OptimizerRecipe()), range(3))
    optimizer = Optimizers(dict(plain.named_parameters()), OptimizerRecipe())
    optimizer.parts = [torch.optim.AdamW(plain.parameters(), weight_decay=0.0, foreach=False)]
    advance(plain, optimizer, range(3))
    for expected, got in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_state_of_another_model_is_refused():
    optimizer = Optimizers(dict(network().named_parameters()), OptimizerRecipe())
    with pytest.raises(CheckpointError, match="does not train"):
        optimizer.load_state_tensors({"other.weight/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalise_brings_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(matrix[None], steps=5)[0])
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_agrees_with_the_one_of_torch():
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))
    gradient = torch.randn(12, 8, generator=torch.Generator().manual_seed(3))
    ours, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    Muon([ours], lr=0.1, momentum=0.95, weight_decay=0.1, steps=5).step()
    torch.optim.Muon([theirs], lr=0.1, adjust_lr_fn="match_rms_adamw").step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)  # theirs iterates in bfloat16


def test_muon_treats_a_1x1_convolution_as_its_matrix():
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    flat, window = nn.Parameter(weight.clone()), nn.Parameter(weight.clone()[:, :, None, None])
    for parameter in (flat, window):
        parameter.grad = torch.ones_like(parameter) + parameter.detach()
        Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.0, steps=5).step()
    assert torch.equal(flat, window[:, :, 0, 0])


def test_muon_takes_the_inner_matrices_of_both_models():
    transformer = Transformer(TransformerConfig.from_dict(TRANSFORMER))
    taken = {name for name, value in transformer.named_parameters() if is_matrix(name, value)}
    assert taken and all(name.startswith("transformer_blocks.") for name in taken)
    assert "transformer_blocks.0.ff.conv_inverted.weight" in taken
    assert "transformer_blocks.0.attn2.to_k.weight" in taken
    assert not any("conv_depth" in name or "table" in name for name in taken)
    autoencoder = Autoencoder(AutoencoderConfig.from_dict(AUTOENCODER))
    inner = {name for name, value in autoencoder.named_parameters() if is_matrix(name, value)}
    assert "encoder.down_blocks.2.0.attn.to_q.weight" in inner
    assert "encoder.conv_out.weight" not in inner


def test_every_parameter_is_in_one_optimiser():
    model = Transformer(TransformerConfig.from_dict(TRANSFORMER))
    optimizer = Optimizers(dict(model.named_parameters()), OptimizerRecipe(name="muon"))
    owned = [p for part in optimizer.parts for g in part.param_groups for p in g["params"]]
    assert len(owned) == len(set(owned)) == len(list(model.parameters()))


def test_schedules():
    def rates(decay: str) -> list[float]:
        schedule = ScheduleRecipe(warmup=2, decay=decay, final=0.1)  # pyright: ignore
        return [learning_rate(s, lr=1.0, steps=12, schedule=schedule) for s in (0, 1, 2, 7, 12)]

    assert rates("constant") == pytest.approx([0.5, 1, 1, 1, 1])
    assert rates("linear") == pytest.approx([0.5, 1, 1, 0.55, 0.1])
    assert rates("cosine") == pytest.approx([0.5, 1, 1, 0.55, 0.1])

"""A transformer with LoRAs beside the plain one: the bits of a model that is opened with them."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from opensana.errors import ConfigError, WeightsError
from opensana.models.load import load_transformer
from opensana.models.options import LoadOptions
from opensana.models.quantised import write_quantised
from opensana.models.with_loras import WithLoras
from opensana.pipeline import Sana
from opensana.runtime.fused import fuse, is_fused
from opensana.runtime.placing import place
from opensana.runtime.quantize import Quantization, quantization_of, quantize
from opensana.transformer.model import Transformer
from opensana.weights.lora import Lora, MergedLora, read_lora
from tests import tiny
from tests.lora_files import write_lora
from tests.weights.test_lora import inputs

EVERY = (*("to_q", "to_k", "to_v", "to_out.0", "ff.conv_inverted", "ff.conv_point"), "proj_out")
pytestmark = pytest.mark.filterwarnings("ignore:.* saves memory here, not time")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana(instruction="none").save(tmp_path_factory.mktemp("models") / "model")


def opened(model: Path, **options: Any) -> WithLoras[Sana]:
    given: dict[str, Any] = {"device": "cpu", "dtype": "float32"} | options
    loaded = LoadOptions(model=model, **given)
    keywords = {name: value for name, value in vars(loaded).items() if name != "model"}
    return WithLoras(Sana.load(model, **keywords), loaded)


@pytest.fixture(scope="module")
def loras(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Lora]:
    folder, sides = tmp_path_factory.mktemp("loras"), opened(model).sides
    return [
        read_lora(write_lora(folder / "few.safetensors", sides)),
        read_lora(write_lora(folder / "every.safetensors", sides, seed=2, layers=EVERY)),
    ]


@torch.inference_mode()
def velocity(transformer: Transformer) -> torch.Tensor:
    """As in drawing: with a prepared, folded text."""
    latent, timestep, text = inputs()
    prepared = transformer.fold(transformer.prepare_text(text[:1]))
    return transformer.velocity(latent, timestep, prepared)


WAYS = [{}, {"dtype": "bfloat16"}, {"quantize": "w8"}]
SLOW_WAYS = [{"quantize": "w4"}, {"quantize": "w8a8"}, {"dtype": "bfloat16", "quantize": "w8"}]


@pytest.mark.parametrize(
    "options", [*WAYS, *(pytest.param(one, marks=pytest.mark.slow) for one in SLOW_WAYS)], ids=str
)
def test_it_is_the_transformer_of_a_model_opened_with_them(
    model: Path, loras: list[Lora], options: dict[str, Any]
) -> None:
    base = opened(model, **options)
    before = velocity(base.model.transformer)
    for used in (loras[:1], loras[1:], loras):
        scales = [0.5, -1.5][: len(used)]
        found = base.transformer(list(zip(used, scales, strict=True)))
        expected = opened(model, lora=used, lora_scale=scales, **options).model
        assert torch.equal(velocity(found), velocity(expected.transformer))
        assert not torch.equal(velocity(found), before)
        named = [MergedLora(one.name, one.sha256, s) for one, s in zip(used, scales, strict=True)]
        described = base.described(named)
        assert list(described.provenance.items()) == list(expected.provenance.items())
    assert torch.equal(velocity(base.model.transformer), before), "the plain one is as it was"


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"quantize": "w8"}], ids=str)
def test_after_one_that_the_model_was_opened_with(
    model: Path, loras: list[Lora], options: dict[str, Any]
) -> None:
    base = opened(model, lora=loras[1], lora_scale=0.7, **options)
    expected = opened(model, lora=[loras[1], loras[0]], lora_scale=[0.7, 2.0], **options).model
    found = base.transformer([(loras[0], 2.0)])
    assert torch.equal(velocity(found), velocity(expected.transformer))
    described = base.described([MergedLora(loras[0].name, loras[0].sha256, 2.0)])
    assert described.provenance == expected.provenance


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8", "w4", "w8a8"])
def test_a_stored_quantised_model_is_quantised_again_as_a_whole(
    model: Path, loras: list[Lora], tmp_path: Path, scheme: Any
) -> None:
    folder = Sana.load(model, device="cpu", quantize=scheme).save(tmp_path / scheme)
    base = opened(folder)
    expected = opened(folder, lora=loras[0]).model
    found = base.transformer([(loras[0], 1.0)])
    assert torch.equal(velocity(found), velocity(expected.transformer))


def test_of_another_transformer(model: Path, loras: list[Lora], tmp_path: Path) -> None:
    other = tiny.transformer()
    tiny.randomise(other, 9)
    folder = replace(tiny.sana(), transformer=other).save(tmp_path / "other") / "transformer"
    base = opened(model, transformer=folder)
    expected = opened(model, transformer=folder, lora=loras[0]).model
    found = base.transformer([(loras[0], 1.0)])
    assert torch.equal(velocity(found), velocity(expected.transformer))


def test_what_no_lora_changes_is_shared(model: Path, loras: list[Lora]) -> None:
    base = opened(model)
    plain, found = base.model.transformer, base.transformer([(loras[0], 1.0)])
    mine, theirs = (dict(one.named_modules()) for one in (found, plain))
    layers = {name for name in mine if name in base.sides and mine[name] is not theirs[name]}
    assert layers == set(loras[0].layers)
    assert found.caption_norm is plain.caption_norm and found.patch_embed is plain.patch_embed
    numbers = sum(prod(base.sides[name]) for name in layers)
    assert base.bytes([(loras[0], 1.0)]) == 4 * numbers < base.all_bytes


def test_wrong_use_is_one_line(model: Path, loras: list[Lora]) -> None:
    with pytest.raises(ConfigError, match="leave compile out"):
        WithLoras(tiny.sana(), LoadOptions(model=model, compile=True))
    change = next(iter(loras[0].layers.values()))
    strange = replace(loras[0], layers={"transformer_blocks.7.attn1.to_q": change})
    with pytest.raises(WeightsError, match="belongs to another architecture"):
        opened(model).check(strange)


def test_fused_blocks_are_made_anew(model: Path, loras: list[Lora]) -> None:
    """As on a GPU; here the plain transformer of the same LoRAs stands beside it."""
    plain, base = opened(model), opened(model)
    fuse(place(base.model.transformer, torch.device("cpu"), torch.float32))
    assert not is_fused(base.model.transformer), "packed layers stay"
    whole = load_transformer(model)
    fuse(whole)
    base.model = replace(base.model, transformer=whole)
    found, expected = (one.transformer([(loras[1], 0.5)]) for one in (base, plain))
    assert is_fused(found) and base.bytes([(loras[1], 0.5)]) == base.all_bytes
    assert velocity(found).allclose(velocity(expected), rtol=1e-4, atol=1e-5)
    assert not velocity(found).allclose(velocity(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stored", [False, True])
def test_fused_blocks_in_8_bits_too(
    stored: bool, model: Path, loras: list[Lora], tmp_path: Path
) -> None:
    scheme = Quantization("w8a8")
    folder = write_quantised(model, tmp_path / "small", scheme) if stored else model
    base = opened(folder)
    whole = load_transformer(folder)
    if not stored:
        quantize(whole, scheme)
    fuse(whole)
    base.model = replace(base.model, transformer=whole)
    found = base.transformer([(loras[1], 0.5)])
    assert is_fused(found) and quantization_of(found) == scheme
    expected = velocity(opened(model).transformer([(loras[1], 0.5)]))
    assert (velocity(found) - expected).norm() < 0.05 * expected.norm()

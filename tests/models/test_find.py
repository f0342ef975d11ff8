"""A name means the same network to every command: trained on, planned, drawn with, measured."""

from pathlib import Path
from typing import Any

import pytest

from opensana.cli import main
from opensana.errors import ConfigError, WeightsError
from opensana.models import find as finding
from opensana.models.find import (
    autoencoder_config_of,
    find_autoencoder,
    find_transformer,
    transformer_config_of,
)
from opensana.models.load import load_other_transformer
from opensana.models.presets import AUTOENCODERS, TRANSFORMERS
from opensana.models.save import write_autoencoder, write_transformer
from opensana.train import load_recipe
from opensana.train.autoencoder.task import initial_autoencoder
from opensana.train.dry_run import plan
from opensana.train.transformer.initial import initial_transformer
from opensana.weights.locate import PRETRAINED
from tests import tiny

RECIPES = Path(__file__).parents[2] / "recipes"
DC_AE = "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
WHOLE = "Efficient-Large-Model/Sana_600M_512px_diffusers"
BFLOAT16 = "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path inside the repository means anything here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """What a training leaves: networks in folders of their own, and no index above them."""
    write_transformer(tiny.transformer(), tmp_path / "run" / "export" / "transformer")
    write_autoencoder(tiny.autoencoder(), tmp_path / "run" / "export" / "vae")
    return tmp_path / "run" / "export"


def test_every_form_of_a_name_is_found(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin = PRETRAINED / "emoji-256"
    monkeypatch.setenv("HOME", str(export.parent))
    for name in ("emoji-256", str(builtin), builtin):
        assert find_transformer(name) == builtin / "transformer"
        assert find_autoencoder(name) == builtin / "vae"
    for name in (str(export), export, "run/export", "~/export"):
        assert find_transformer(name).resolve() == export / "transformer"
        assert find_autoencoder(name).resolve() == export / "vae"
    assert find_transformer("run/export/transformer").resolve() == export / "transformer"
    assert find_autoencoder(str(builtin / "vae")) == builtin / "vae"


def test_a_name_that_means_nothing_is_refused_with_a_hint(export: Path, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    for find in (find_transformer, find_autoencoder):
        with pytest.raises(WeightsError, match="did you mean 'emoji-256'"):
            find("emoji-265")
        with pytest.raises(WeightsError, match="is a file, not a model folder"):
            find("weights.bin")
    with pytest.raises(WeightsError, match="run holds no model"):
        find_transformer("run")


@pytest.mark.parametrize("initial", ["emoji-256", str(PRETRAINED / "emoji-256" / "vae"), DC_AE])
def test_a_plan_finds_the_autoencoder_that_training_would(initial: str, capsys) -> None:
    """`emoji-256`, a folder and a hub id; the last is not on this machine and stays away."""
    recipe = str(RECIPES / "dc-ae" / "finetune-decoder.toml")
    assert main(["train", recipe, "--dry-run", "--set", f"initial={initial}"]) == 0
    assert "(autoencoder), in runs/dc-ae-decoder" in capsys.readouterr().out
    assert "is missing" not in capsys.readouterr().err


def test_plan_and_training_name_the_same_network(export: Path) -> None:
    changes = ["initial=run/export", "data.crop=64", "parallel.peak_tflops=1"]
    recipe: Any = load_recipe(RECIPES / "dc-ae" / "finetune-decoder.toml", changes)
    trained = initial_autoencoder(recipe)
    assert trained.config == tiny.AUTOENCODER
    assert plan(recipe, processes=1).parameters == sum(p.numel() for p in trained.parameters())
    changes = ["initial=run/export", "parallel.peak_tflops=1"]
    lora: Any = load_recipe(RECIPES / "emoji" / "lora.toml", changes)
    begun = initial_transformer(lora)
    adapters = plan(lora, processes=1)
    assert adapters.parameters - adapters.trained == sum(p.numel() for p in begun.parameters())


def test_another_transformer_is_found_by_any_name(export: Path) -> None:
    model = PRETRAINED / "emoji-256"
    for name in ("emoji-256", str(model), str(model / "transformer")):
        drawn = load_other_transformer(name, model)
        assert drawn.config == transformer_config_of("emoji-256")
    with pytest.raises(WeightsError, match="has in_channels 8"):
        load_other_transformer("run/export", model)


def test_shapes_of_published_models_are_known_without_their_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*_: object, **__: object) -> Path:
        raise AssertionError("a dry run downloads nothing")

    monkeypatch.setattr(finding, "locate", away)
    assert transformer_config_of(BFLOAT16) == TRANSFORMERS["sana_1600m_1024"]
    assert autoencoder_config_of(DC_AE) == AUTOENCODERS["dc_ae_f32c32_sana_1_1"]
    assert autoencoder_config_of(WHOLE) == AUTOENCODERS["dc_ae_f32c32_sana_1_0"]
    lora = RECIPES / "emoji" / "lora.toml"
    known: Any = load_recipe(lora, [f"initial={BFLOAT16}", "parallel.peak_tflops=1"])
    assert plan(known, processes=1).parameters > 1.6e9


def test_a_plan_refuses_what_training_refuses() -> None:
    half: Any = load_recipe(RECIPES / "emoji" / "lora.toml", [f"initial={WHOLE}"])
    with pytest.raises(ConfigError, match="made for float16"):
        plan(half, processes=1)


def test_the_kind_of_network_is_checked(export: Path) -> None:
    recipe: Any = load_recipe(
        RECIPES / "dc-ae" / "finetune-decoder.toml", ["initial=run/export/transformer"]
    )
    for find in (initial_autoencoder, lambda r: plan(r, processes=1)):
        with pytest.raises(WeightsError, match="expected a AutoencoderDC"):
            find(recipe)

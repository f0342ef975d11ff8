"""Recipes: complete files, clear errors, and the same bits after a round trip."""

from pathlib import Path

import pytest
import torch

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.config import to_toml
from opensana.errors import ConfigError
from opensana.models.presets import dc_ae_f32c32_sana_1_0
from opensana.train.autoencoder.phases import freeze_all_but, phase_prefixes
from opensana.train.recipe import AutoencoderRecipe, TransformerRecipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))
DC_AE = [path for path in RECIPES if path.parent.name == "dc-ae"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path: Path, tmp_path: Path):
    recipe = load_recipe(path)
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(to_toml(recipe))
    assert load_recipe(resolved) == recipe


def test_the_kind_selects(autoencoder_recipe, transformer_recipe, write_recipe):
    assert isinstance(load_recipe(write_recipe(autoencoder_recipe())), AutoencoderRecipe)
    assert isinstance(load_recipe(write_recipe(transformer_recipe())), TransformerRecipe)


def test_overrides(autoencoder_recipe, write_recipe):
    path = write_recipe(autoencoder_recipe())
    recipe = load_recipe(path, ["optimizer.lr=0.5", "steps=7", "optimizer.name=muon"])
    assert (recipe.optimizer.lr, recipe.steps, recipe.optimizer.name) == (0.5, 7, "muon")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("kind=autoencodr", "optimizer|must be one of|autoencoder"),
        ("optimizer.lrr=1", "did you mean 'lr'"),
        ("steps=0", "`steps` is 0"),
        ("loss.mse=0.0", "positive sum"),
        ("initial=somewhere", "drop one"),
        ("clip=-1.0", "`clip`"),
        ("samples.every=0", "`samples.every` is 0; it must be 1 or more"),
    ],
)
def test_mistakes_are_named(autoencoder_recipe, write_recipe, override, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe(write_recipe(autoencoder_recipe()), [override])


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")


def test_mistakes_of_the_transformer_are_named(transformer_recipe, write_recipe):
    path = write_recipe(transformer_recipe())
    with pytest.raises(ConfigError, match=r"`samples\.every` is 0"):
        load_recipe(path, ["samples.every=0"])
    with pytest.raises(ConfigError, match=r"`data\.text_noise` is -0\.5"):
        load_recipe(path, ["data.text_noise=-0.5"])


@pytest.mark.parametrize("path", DC_AE, ids=lambda path: path.stem)
def test_each_dc_ae_recipe_builds_the_published_shape(path: Path):
    recipe = load_recipe(path)
    assert isinstance(recipe, AutoencoderRecipe)
    config = dc_ae_f32c32_sana_1_0
    if recipe.model is not None:
        assert AutoencoderConfig.from_dict(recipe.model) == config
    with torch.device("meta"):
        model = Autoencoder(config)
    trained = freeze_all_but(model, phase_prefixes(recipe, config))
    millions = round(sum(p.numel() for p in trained.values()) / 1e6)
    assert millions == {"full": 312, "latent": 109, "refine": 6, "decoder": 159}[recipe.phase]
    assert recipe.data.crop % model.compression == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"loss": {"lpips": 0.1}},
            r"`loss.lpips_weights` is None; it must be the weights",
        ),
        ({"loss": {"lpips_weights": "w"}}, r"`loss.lpips_weights` is 'w'.*left out where it is 0"),
        ({"phase": "decoder"}, r"`scaling` is 'measured'; it must be 'kept'"),
        ({"phase": "decoder", "scaling": "kept"}, r"`initial` is None"),
    ],
)
def test_mistakes_of_the_autoencoder(autoencoder_recipe, changes, said):
    with pytest.raises(ConfigError, match=said):
        autoencoder_recipe(**changes)

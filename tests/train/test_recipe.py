"""Recipes: complete files, clear errors, and the same bits after a round trip."""

from pathlib import Path

import pytest

from opensana.config import to_toml
from opensana.errors import ConfigError
from opensana.train.recipe import AutoencoderRecipe, TransformerRecipe, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.toml"))


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
    ],
)
def test_mistakes_are_named(autoencoder_recipe, write_recipe, override, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe(write_recipe(autoencoder_recipe()), [override])


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no recipe at"):
        load_recipe(tmp_path / "none.toml")

"""Training from complete TOML recipes: autoencoder, flow matching, distillation, CLIP."""

from collections.abc import Sequence
from pathlib import Path

from opensana.train.recipe import (
    AutoencoderRecipe,
    ClipRecipe,
    ControlNetRecipe,
    DistillationRecipe,
    TransformerRecipe,
    load_recipe,
)

__all__ = [
    "AutoencoderRecipe",
    "ClipRecipe",
    "ControlNetRecipe",
    "DistillationRecipe",
    "TransformerRecipe",
    "load_recipe",
    "run",
]


def run(recipe_path: Path | str, overrides: Sequence[str] = ()) -> None:
    """Train by a recipe, with `a.b=value` overrides; the same call resumes."""
    recipe = load_recipe(recipe_path, overrides)
    if isinstance(recipe, AutoencoderRecipe):
        from opensana.train.autoencoder.task import train_autoencoder

        return train_autoencoder(recipe)
    if isinstance(recipe, ControlNetRecipe):
        from opensana.train.transformer.controlnet import train_controlnet

        return train_controlnet(recipe)
    if isinstance(recipe, DistillationRecipe):
        from opensana.train.distillation.task import distil

        return distil(recipe)
    if isinstance(recipe, ClipRecipe):
        from opensana.train.clip.task import train_clip

        return train_clip(recipe)
    from opensana.train.transformer.task import train_transformer

    return train_transformer(recipe)

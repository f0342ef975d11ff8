"""What a transformer's training starts from: given or random weights, fitted to its features."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from opensana.errors import ConfigError
from opensana.features.latents import Features
from opensana.features.texts import Texts
from opensana.models.find import find_transformer
from opensana.models.load import load_transformer
from opensana.models.parts import main_dtype, quantization, transformer_config
from opensana.models.presets import TRANSFORMERS
from opensana.runtime.placing import place
from opensana.runtime.quantize import Quantization, quantization_of
from opensana.train.engine.randomness import torch_generator
from opensana.train.recipe import TransformerRecipe
from opensana.transformer.initialisation import initialise
from opensana.transformer.model import Transformer, TransformerConfig
from opensana.weights.locate import is_here
from opensana.weights.published_models import published_model
from opensana.weights.safetensors import available_variants, read_headers

Module = TypeVar("Module", bound=nn.Module)


def initial_transformer(recipe: TransformerRecipe) -> Transformer:
    """The weights of `initial`, or a random start of [model] that depends on the seed alone.

    Given both, the weights train on in a model of [model]: another size of picture, or positions.
    """
    if recipe.initial is not None:
        model = given_transformer(recipe.initial)
        return model if recipe.model is None else _continued(model, recipe.model)
    assert recipe.model is not None
    model = Transformer(TransformerConfig.from_dict(recipe.model))
    generator = torch_generator(recipe.seed, "initialisation")
    initialise(model, generator, caption_norm=recipe.caption_norm)
    return model


def given_transformer(initial: str) -> Transformer:
    """Given weights in float32; ConfigError for those that are known to draw in float16 only."""
    check_trainable(initial)
    return trainable(load_transformer(find_transformer(initial)))


def _continued(model: Transformer, values: Mapping[str, Any]) -> Transformer:
    config = TransformerConfig.from_dict(values)
    known = replace(
        model.config,
        sample_size=config.sample_size,
        interpolation_scale=config.interpolation_scale,
        dropout=config.dropout,
    )
    if config != known:
        raise ConfigError(
            "[model] and the weights of `initial` differ in more than sample_size,"
            " interpolation_scale and dropout; leave [model] out, or `initial`"
        )
    with torch.device("meta"):
        continued = Transformer(config)
    continued.load_state_dict(model.state_dict(), assign=True)
    return continued.requires_grad_(True).train()


def check_trainable(initial: str) -> None:
    """Raise ConfigError for quantised weights, and for those known to draw in float16 only.

    A published model that is not on this machine is recognised by its name.

    The published float16 models have activations up to a million and lean on a clamp at float16's
    limit, which neither float32 nor bfloat16 has: fine-tuned, they collapse. An own model in
    float16, such as emoji-256, is only a rounding of float32 weights that trained well.
    """
    if is_here(initial):
        check_plain(quantization(find_transformer(initial)))
    path = Path(initial)
    known = published_model(path.parent.name if path.name == "transformer" else initial)
    if (known is not None and known.dtype == "fp16") or _is_rounded(initial):
        raise ConfigError(
            f"`initial` is {initial!r}, whose weights are made for float16, to draw with: they lean"
            " on its clamp and collapse in training; start from a model published in bfloat16,"
            " such as Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers, without a variant"
        )


def _is_rounded(initial: str) -> bool:
    """Whether the files are a rounding to float16 of weights that somebody else trained."""
    if not is_here(initial) and published_model(initial) is not None:
        return False
    part = find_transformer(initial)
    half = main_dtype(read_headers(part)) == "F16"
    foreign = transformer_config(part) in TRANSFORMERS.values()
    return half and (foreign or available_variants(part) == ["fp16"])


def check_plain(found: Quantization | None) -> None:
    """Raise ConfigError for a quantised network: whole numbers have no gradient."""
    if found is not None:
        raise ConfigError(
            f"a model that is quantised ({found.scheme}) cannot be trained; start from the plain "
            "one, and quantise the result"
        )


def trainable(model: Module) -> Module:
    """A loaded model as training needs it: in float32, all of it."""
    check_plain(quantization_of(model))
    return place(model, torch.device("cpu"), torch.float32).requires_grad_(True).train()


@torch.no_grad()
def standardise_inputs(layer: nn.Linear, texts: Texts) -> None:
    """Fold the mean and deviation of text states into the first layer that reads them.

    A few channels of a language model are nearly constant and many times larger than all others;
    an untrained projection sees little else, and all captions look alike to it.
    """
    mean, deviation = texts.moments
    layer.weight.div_(deviation.clamp(min=1e-3))
    layer.bias.sub_(layer.weight @ mean)


def check_fit(config: TransformerConfig, features: Features, folder: str) -> None:
    """Raise ConfigError when the model and the cached features differ in their channels."""
    pairs = {
        "in_channels": (config.in_channels, features.latent_shape[0]),
        "caption_channels": (config.caption_channels, features.text_dim),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ConfigError(
                f"model.{name} is {ours}, but the features in {folder} have {theirs}; set it to"
                f" {theirs} or encode the features with the matching model"
            )

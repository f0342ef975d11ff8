"""The networks of a model folder as modules, ready to draw."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from opensana.autoencoder.model import Autoencoder
from opensana.errors import WeightsError
from opensana.models.find import find_transformer
from opensana.models.index import ModelInfo
from opensana.models.parts import (
    autoencoder_config,
    autoencoder_folder,
    controlnet_config,
    controlnet_folder,
    part_variant,
    quantization,
    text_headers,
    transformer_config,
    transformer_folder,
)
from opensana.runtime.placing import Module, prepare_for_inference, unmap
from opensana.runtime.quantize import quantize
from opensana.text.demo_encoder import gemma3_270m_folder
from opensana.text.encoder import TextEncoder
from opensana.text.gguf import gguf_in
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import ControlNet, check_pair
from opensana.transformer.model import Stack, Transformer
from opensana.weights.safetensors import (
    check_finite,
    check_fit,
    load_into,
    read_headers,
    read_onto,
    read_safetensors,
)


@dataclass(frozen=True)
class Onto:
    """Where weights are read to, and the number format that they have there."""

    device: torch.device
    dtype: torch.dtype


TEXT_ENCODERS = {"gemma3-270m": gemma3_270m_folder}
Config = TypeVar("Config")


def load_transformer(
    folder: Path, *, variant: str | None = None, onto: Onto | None = None
) -> Transformer:
    """The transformer of a model folder or of a folder that is one itself, for inference.

    It is on the CPU, in the stored dtype; with `onto` there, but for one that is quantised.
    """
    part = transformer_folder(folder)
    return _load(Transformer, transformer_config(part), part, variant, onto)


def load_other_transformer(
    own: str | Path, model: Path, *, onto: Onto | None = None
) -> Transformer:
    """The transformer that `own` means, to stand in for that of the model folder.

    WeightsError where it reads or writes other things than the model's own.
    """
    part = find_transformer(own)
    config, expected = transformer_config(part), transformer_config(transformer_folder(model))
    for name in ("in_channels", "out_channels", "caption_channels"):
        got, wanted = getattr(config, name), getattr(expected, name)
        if got != wanted:
            raise WeightsError(
                f"{own} has {name} {got}, and the other parts of this model need {wanted}; "
                "name the model whose features it was trained on"
            )
    return load_transformer(part, onto=onto)


def load_autoencoder(
    folder: Path, *, variant: str | None = None, onto: Onto | None = None
) -> Autoencoder:
    """The autoencoder of a model folder or of a folder that is one itself, for inference."""
    part = autoencoder_folder(folder)
    return _load(Autoencoder, autoencoder_config(part), part, variant, onto)


def load_controlnet(
    source: str | Path,
    transformer: TransformerConfig,
    onto: Onto | None = None,
    *,
    variant: str | None = None,
) -> ControlNet:
    """The ControlNet in a folder, in its folder `controlnet`, or of a hub id, for inference.

    ConfigError if it was made for another transformer.
    """
    part = controlnet_folder(source)
    config = controlnet_config(part)
    check_pair(transformer, config)
    return _load(ControlNet, config, part, variant, onto)


def _load(
    network: Callable[[Config], Module],
    config: Config,
    part: Path,
    variant: str | None,
    onto: Onto | None,
) -> Module:
    """The network of a configuration with the weights of a part."""
    with torch.device("meta"):
        module = network(config)
        if (found := quantization(part)) is not None:
            assert isinstance(module, Stack)
            quantize(module, found)
    chosen = part_variant(part, variant)
    if onto is None or found is not None:
        load_into(module, read_safetensors(part, variant=chosen), where=part)
    else:
        check_fit(module, read_headers(part, variant=chosen), where=part)
        state = read_onto(onto.device, onto.dtype, part, variant=chosen)
        load_into(module, state, where=part, finite=False)
    if found is not None and found.scheme == "w8a8":  # most of it is packed, which copies it
        unmap(module)
    return module.eval().requires_grad_(False)


def load_text(
    folder: Path,
    info: ModelInfo,
    *,
    device: torch.device,
    dtype: torch.dtype,
    at: torch.device | None = None,
) -> TextEncoder:
    """The text encoder in the folder, or the one that its defaults name; `at` as for `placing`."""
    source = TEXT_ENCODERS[info.defaults.text_encoder]() if info.defaults.text_encoder else folder
    encoder = TextEncoder.load(
        source,
        device=at or device,
        dtype=dtype,
        instruction=info.defaults.instruction,
        max_tokens=info.defaults.max_tokens,
    )
    if not info.defaults.text_encoder:  # a package's file is known by its SHA-256
        if gguf_in(folder / "text_encoder") is None:
            text_headers(folder / "text_encoder")
        check_finite(encoder.model.state_dict(), where=folder / "text_encoder")
    prepare_for_inference(encoder.model, device, dtype, at=at)
    return encoder

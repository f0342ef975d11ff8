"""Where the networks of a model folder lie, and their configurations and number formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opensana.autoencoder.config import AutoencoderConfig
from opensana.errors import WeightsError, near
from opensana.files.writing import read_json
from opensana.runtime.quantize import Quantization
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import ControlNetConfig
from opensana.weights.formats import WHOLE, held_dtype
from opensana.weights.locate import HUB_ID, fetch
from opensana.weights.safetensors import (
    VARIANTS,
    TensorInfo,
    available_variants,
    check_weights,
    read_headers,
)

QUANTIZATION = "quantization_config"
SPRINT_PART = "transformer_sprint"
"""The folder of a few-step transformer beside the model's own; other readers know nothing of it."""
CONTROLNET_FILES = (
    *("config.json", "diffusion_pytorch_model*"),
    *("controlnet/config.json", "controlnet/diffusion_pytorch_model*"),
)


def transformer_folder(folder: Path) -> Path:
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def autoencoder_folder(folder: Path) -> Path:
    return folder / "vae" if (folder / "vae").is_dir() else folder


def controlnet_folder(source: str | Path) -> Path:
    """Where a ControlNet's config.json lies; of a hub id only the ControlNet is fetched."""
    folder = Path(source).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(str(source)):
        folder = fetch(str(source), CONTROLNET_FILES)
    part = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    if not (part / "config.json").is_file():
        raise WeightsError(
            f"{source} holds no ControlNet: name the folder with its config.json, the one above "
            "its folder `controlnet`, or a hub id (owner/name)"
        )
    return part


def transformer_config(part: Path) -> TransformerConfig:
    return TransformerConfig.from_dict(_config(part, "SanaTransformer2DModel"))


def autoencoder_config(part: Path) -> AutoencoderConfig:
    return AutoencoderConfig.from_dict(_config(part, "AutoencoderDC"))


def controlnet_config(part: Path) -> ControlNetConfig:
    return ControlNetConfig.from_dict(_config(part, "SanaControlNetModel"))


def _config(part: Path, kind: str) -> dict[str, Any]:
    config = read_json(part / "config.json")
    if config.get("_class_name", kind) != kind:
        raise WeightsError(f"{part} holds a {config['_class_name']}, expected a {kind}")
    if quantization(part) is not None and kind != "SanaTransformer2DModel":
        raise WeightsError(f"{part} holds a quantised {kind}, which opensana does not read")
    return {name: value for name, value in config.items() if name != QUANTIZATION}


def quantization(part: Path) -> Quantization | None:
    """How the weights of a part are quantised; WeightsError if by another program."""
    found = read_json(part / "config.json").get(QUANTIZATION)
    return None if found is None else Quantization.from_config(found, part)


def part_variant(part: Path, variant: str | None) -> str | None:
    """The variant asked for where the part has it, else the plain files, as published models do."""
    if variant is not None and variant not in VARIANTS:
        raise WeightsError(f"no such variant {variant!r}{near(variant, VARIANTS)}: fp16 or bf16")
    return variant if variant in available_variants(part) else None


def stored_dtype(folder: Path, variant: str | None = None) -> torch.dtype:
    """The number format of the transformer as it is read: bfloat16 of float8."""
    part = folder / "transformer"
    headers = read_headers(part, variant=part_variant(part, variant))
    return held_dtype(main_dtype(headers))


def main_dtype(headers: Mapping[str, TensorInfo]) -> str:
    """The dtype that holds most of the numbers that are no whole ones."""
    totals: dict[str, int] = {}
    for tensor in headers.values():
        if tensor.dtype in WHOLE:
            continue
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.size
    return max(totals, key=lambda name: totals[name], default="F32")


def text_headers(part: Path) -> dict[str, TensorInfo]:
    """What the files of a text encoder hold; WeightsError where it would be read as other numbers.

    One whose configuration tells how it is quantized is for the library that reads it.
    """
    headers = read_headers(part)
    if QUANTIZATION not in read_json(part / "config.json"):
        check_weights(headers, where=part)
    return headers

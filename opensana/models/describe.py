"""What `opensana info` shows of a model, from configs and file headers; no weights are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.device import resolve_device, resolve_dtype
from opensana.files.writing import read_json
from opensana.models.index import INDEX, ModelInfo, read_info
from opensana.models.memory import memory_needed
from opensana.models.parts import (
    SPRINT_PART,
    autoencoder_config,
    main_dtype,
    part_variant,
    text_headers,
    transformer_config,
)
from opensana.models.presets import (
    AUTOENCODERS,
    TRANSFORMERS,
    ModelFacts,
    facts,
    published_autoencoder,
)
from opensana.models.resolution_bins import bins
from opensana.runtime.placing import part_dtype
from opensana.transformer.model import Transformer
from opensana.weights.formats import held_dtype
from opensana.weights.hub_names import hub_id
from opensana.weights.locate import is_here, locate
from opensana.weights.safetensors import check_fit, read_headers

Config = TypeVar("Config")


def describe(
    model: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What `opensana info` shows, from configs and file headers; no weights are read.

    A published model is not fetched for it: what is known of it is shown instead.
    """
    if not is_here(model, revision=revision):
        published = describe_published(str(model), device=device)
        if published is not None:
            return published
    folder = locate(model, revision=revision, variant=variant)
    if not (folder / INDEX).is_file():
        return _describe_autoencoder(folder, str(model), variant)
    info = read_info(folder, name=str(model))
    autoencoder = autoencoder_config(folder / "vae")
    transformer = transformer_config(folder / "transformer")
    side = transformer.sample_size * autoencoder.compression
    parts = {"transformer": _part(folder / "transformer", variant, Transformer, transformer)}
    if (sprint := folder / SPRINT_PART).is_dir():
        parts[SPRINT_PART] = _part(sprint, variant, Transformer, transformer_config(sprint))
    parts["vae"] = _part(folder / "vae", variant, Autoencoder, autoencoder)
    parts["text_encoder"] = _text_part(folder, info)
    known = facts(str(model))
    place = resolve_device(device)
    stored = held_dtype(str(parts["transformer"]["dtype"]))
    main = resolve_dtype(place, None, stored)
    others = part_dtype(place, main)
    counts = {part: found["parameters"] or 0 for part, found in parts.items()}
    memory = memory_needed(counts, transformer, autoencoder, main=main, others=others)
    return {
        "model": str(model),
        "folder": str(folder),
        "licence": info.notes.licence,
        "native_size": side,
        "shift": info.shift,
        "scheduler": info.scheduler,
        "instruction": info.notes.instruction,
        "recommended_steps": info.notes.steps,
        "recommended_guidance": info.notes.guidance,
        "dtype": parts["transformer"]["dtype"],
        "dtype_rule": known.dtype_rule if known else "as stored; float32 on a CPU",
        "computed_in": str(main).removeprefix("torch."),
        "positions": transformer.positions,
        "binned_sizes": [f"{width}x{height}" for width, height in bins(side).values()],
        "parameters": sum(part["parameters"] or 0 for part in parts.values()),
        "parts": parts,
        "memory": memory.to_dict(),
    }


def _describe_autoencoder(folder: Path, name: str, variant: str | None) -> dict[str, Any]:
    config = autoencoder_config(folder)
    part = _part(folder, variant, Autoencoder, config)
    return {
        "model": name,
        "folder": str(folder),
        "dtype": part["dtype"],
        "compression": config.compression,
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor,
        "parameters": part["parameters"],
        "parts": {"vae": part},
    }


def _part(
    part: Path, variant: str | None, network: Callable[[Config], nn.Module], config: Config
) -> dict[str, Any]:
    """One network; WeightsError where its files are not what loading it needs."""
    headers = read_headers(part, variant=part_variant(part, variant))
    with torch.device("meta"):
        check_fit(network(config), headers, where=part)
    return {
        "class": str(read_json(part / "config.json").get("_class_name", "unknown")),
        "parameters": sum(tensor.size for tensor in headers.values()),
        "dtype": main_dtype(headers),
        "bytes": sum(tensor.bytes for tensor in headers.values()),
    }


def _text_part(folder: Path, info: ModelInfo) -> dict[str, Any]:
    if info.notes.text_encoder:
        return {"class": info.notes.text_encoder, "parameters": None, "dtype": "F32", "bytes": None}
    part = folder / "text_encoder"
    headers = text_headers(part)
    architectures = read_json(part / "config.json").get("architectures") or ["unknown"]
    return {
        "class": str(architectures[0]),
        "parameters": sum(tensor.size for tensor in headers.values()),
        "dtype": main_dtype(headers),
        "bytes": sum(tensor.bytes for tensor in headers.values()),
    }


GEMMA_2_2B = 2_614_341_888


NOT_HERE = "not on this machine; drawing with it fetches them"


STORED = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def describe_published(model: str, *, device: str = "auto") -> dict[str, Any] | None:
    """The facts of a published model from its name alone; None where the name is unknown."""
    known, autoencoder = facts(model), published_autoencoder(model)
    if known is not None:
        return {"model": model, "hub": hub_id(model), **_whole(known, device)}
    if autoencoder is not None:
        return {"model": model, "hub": hub_id(model), **_alone(autoencoder)}
    return None


def _whole(known: ModelFacts, device: str) -> dict[str, Any]:
    transformer, autoencoder = TRANSFORMERS[known.transformer], AUTOENCODERS[known.autoencoder]
    with torch.device("meta"):
        parameters = {
            "transformer": _count(Transformer(transformer)),
            "vae": _count(Autoencoder(autoencoder)),
            "text_encoder": GEMMA_2_2B,
        }
    place = resolve_device(device)
    main = resolve_dtype(place, None, STORED[known.dtype])
    others = part_dtype(place, main)
    memory = memory_needed(parameters, transformer, autoencoder, main=main, others=others)
    return {
        "weights": NOT_HERE,
        "licence": known.licence,
        "native_size": known.native_size,
        "shift": known.shift,
        "instruction": known.instruction,
        "recommended_steps": known.steps,
        "recommended_guidance": known.guidance,
        "autoencoder": known.autoencoder,
        "dtype_rule": known.dtype_rule,
        "computed_in": str(main).removeprefix("torch."),
        "positions": known.positions,
        "binned_sizes": [f"{width}x{height}" for width, height in known.bins.values()],
        "parameters": sum(parameters.values()),
        "parts": parameters,
        "memory": memory.to_dict(),
    }


def _alone(config: AutoencoderConfig) -> dict[str, Any]:
    with torch.device("meta"):
        count = _count(Autoencoder(config))
    return {
        "weights": NOT_HERE,
        "compression": config.compression,
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor,
        "parameters": count,
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

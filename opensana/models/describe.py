"""What `opensana info` shows of a model, from configs and file headers; no weights are read."""

from collections.abc import Callable, Mapping
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
    quantization,
    text_headers,
    transformer_config,
)
from opensana.models.presets import AUTOENCODERS, TRANSFORMERS, published_autoencoder
from opensana.models.resolution_bins import bins
from opensana.models.schemes import bytes_in_8_bits, fitting_schemes
from opensana.runtime.placing import part_dtype
from opensana.runtime.quantize import KEPT, Quantization, quantize
from opensana.text.demo_encoder import BYTES, FORMATS, HELD_BYTES
from opensana.text.gguf import formats_in, gguf_in, held_bytes, read_config
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from opensana.weights.formats import held_dtype
from opensana.weights.gguf import GgufFile
from opensana.weights.locate import is_here, locate
from opensana.weights.published_models import PublishedModel, hub_id, published_model
from opensana.weights.safetensors import TensorInfo, check_fit, read_headers

Config = TypeVar("Config")
DTYPE_RULE = "as stored; float32 on a CPU, and bfloat16 of float32 on a CUDA GPU"


def describe(
    model: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
    room: int | None = None,
) -> dict[str, Any]:
    """What `opensana info` shows, from configs and file headers; no weights are read.

    A published model is not fetched for it: what is known of it is shown instead. With `room`, the
    bytes of a device's memory, also which schemes fit there.
    """
    if not is_here(model, revision=revision):
        published = describe_published(str(model), device=device, room=room)
        if published is not None:
            return published
    folder = locate(model, revision=revision, variant=variant)
    if not (folder / INDEX).is_file():
        return _describe_autoencoder(folder, str(model), variant)
    info = read_info(folder, name=str(model))
    autoencoder = autoencoder_config(folder / "vae")
    transformer = transformer_config(folder / "transformer")
    parts = {"transformer": _part(folder / "transformer", variant, Transformer, transformer)}
    if (sprint := folder / SPRINT_PART).is_dir():
        parts[SPRINT_PART] = _part(sprint, variant, Transformer, transformer_config(sprint))
    parts["vae"] = _part(folder / "vae", variant, Autoencoder, autoencoder)
    text = gguf_in(folder / "text_encoder")
    gguf = None if text is None else GgufFile(text)
    parts["text_encoder"] = _text_part(folder, info, gguf)
    known = published_model(str(model))
    dtype = str(parts["transformer"]["dtype"])
    counts = {part: found["parameters"] or 0 for part, found in parts.items()}
    quantised = {part: found["bytes"] for part, found in parts.items() if "scheme" in found}
    if info.defaults.text_encoder:
        quantised["text_encoder"] = HELD_BYTES
    stored = quantization(folder / "transformer")
    return {
        "model": str(model),
        "folder": str(folder),
        "licence": info.defaults.licence,
        "native_size": transformer.sample_size * autoencoder.compression,
        "shift": info.shift,
        "scheduler": info.scheduler,
        "instruction": info.defaults.instruction,
        "recommended_steps": info.defaults.steps,
        "recommended_guidance": info.defaults.guidance,
        "dtype": dtype,
        "dtype_rule": known.dtype_rule
        if known
        else "as stored; float32 on a CPU; bfloat16 of float32 on a CUDA GPU",
        **_as_drawn_with(
            transformer,
            autoencoder,
            counts,
            held_dtype(dtype),
            device,
            gguf,
            quantised,
            stored,
            room,
        ),
        "parts": parts,
    }


def _as_drawn_with(
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    parameters: Mapping[str, int],
    stored: torch.dtype,
    device: str,
    gguf: GgufFile | None = None,
    quantised: Mapping[str, int] | None = None,
    stored_scheme: Quantization | None = None,
    room: int | None = None,
) -> dict[str, Any]:
    """Number format, sizes and memory of a whole model whose parts have so many `parameters`.

    `quantised` parts take so many bytes instead; `stored_scheme` is the transformer's.
    """
    where = resolve_device(device)
    main = resolve_dtype(where, None, stored)
    others = part_dtype(where, main)
    held = dict(parameters)
    if gguf is not None:
        held["text_encoder"] = held_bytes(gguf, others) // others.itemsize
    for part, stored_bytes in (quantised or {}).items():
        held[part] = stored_bytes // (main if part == "transformer" else others).itemsize
    memory = memory_needed(held, transformer, autoencoder, main=main, others=others, device=where)
    sizes = bins(transformer.sample_size * autoencoder.compression).values()
    schemes = []
    if room is not None:
        text = held["text_encoder"] * others.itemsize
        in_8_bits = gguf is not None or "text_encoder" in (quantised or {})
        schemes = fitting_schemes(
            transformer,
            memory,
            stored=stored_scheme,
            autoencoder=held["vae"] * others.itemsize,
            text=text,
            text_in_8_bits=text if in_8_bits else bytes_in_8_bits(held["text_encoder"]),
            main=main,
            room=room,
        )
    return {
        "computed_in": str(main).removeprefix("torch."),
        "positions": transformer.positions,
        "binned_sizes": [f"{width}x{height}" for width, height in sizes],
        "parameters": sum(parameters.values()),
        "parts": dict(parameters),
        "memory": memory.to_dict(),
        **({"schemes": schemes} if schemes else {}),
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
    found = quantization(part)
    with torch.device("meta"):
        module = network(config)
        parameters = _count(module)
        if found is not None and isinstance(module, Transformer):
            quantize(module, found)
        check_fit(module, headers, where=part)
    name = read_json(part / "config.json").get("_class_name", "unknown")
    stored = _stored(name, headers)
    if found is None:
        return stored
    kept = [f"{name} ({why})" for name, why in KEPT.items()]
    return {**stored, "parameters": parameters, "scheme": found.scheme, "kept_layers": kept}


def _text_part(folder: Path, info: ModelInfo, gguf: GgufFile | None) -> dict[str, Any]:
    if package := info.defaults.text_encoder:
        return {"class": package, "parameters": None, "dtype": FORMATS, "bytes": BYTES}
    part = folder / "text_encoder"
    if gguf is not None:
        return {
            "class": str(read_config(gguf)["architectures"][0]),
            "parameters": sum(tensor.size for tensor in gguf.tensors.values()),
            "dtype": "GGUF: " + ", ".join(formats_in(gguf)),
            "bytes": sum(tensor.bytes for tensor in gguf.tensors.values()),
        }
    headers = text_headers(part)
    architectures = read_json(part / "config.json").get("architectures") or ["unknown"]
    stored = _stored(architectures[0], headers)
    if (found := quantization(part)) is None:
        return stored
    scales = sum(tensor.size for name, tensor in headers.items() if name.endswith("_scale"))
    parameters = int(stored["parameters"]) - scales
    return {**stored, "parameters": parameters, "dtype": "I8", "scheme": found.scheme}


def _stored(class_name: object, headers: Mapping[str, TensorInfo]) -> dict[str, Any]:
    return {
        "class": str(class_name),
        "parameters": sum(tensor.size for tensor in headers.values()),
        "dtype": main_dtype(headers),
        "bytes": sum(tensor.bytes for tensor in headers.values()),
    }


GEMMA_2_2B = 2_614_341_888
NOT_HERE = "not on this machine; drawing with it fetches them"
STORED = {"fp16": torch.float16, "bf16": torch.bfloat16}


def describe_published(
    model: str, *, device: str = "auto", room: int | None = None
) -> dict[str, Any] | None:
    """What is known of a published model by its name alone; None where the name is unknown."""
    known, autoencoder = published_model(model), published_autoencoder(model)
    if known is not None:
        return {"model": model, "hub": hub_id(model), **_published_model(known, device, room)}
    if autoencoder is not None:
        return {"model": model, "hub": hub_id(model), **_published_autoencoder(autoencoder)}
    return None


def _published_model(known: PublishedModel, device: str, room: int | None) -> dict[str, Any]:
    transformer, autoencoder = TRANSFORMERS[known.transformer], AUTOENCODERS[known.autoencoder]
    with torch.device("meta"):
        parameters = {
            "transformer": _count(Transformer(transformer)),
            "vae": _count(Autoencoder(autoencoder)),
            "text_encoder": GEMMA_2_2B,
        }
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
        **_as_drawn_with(
            transformer, autoencoder, parameters, STORED[known.dtype], device, room=room
        ),
    }


def _published_autoencoder(config: AutoencoderConfig) -> dict[str, Any]:
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

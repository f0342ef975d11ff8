"""What is known of a published model whose files are not on this machine."""

from typing import Any

import torch
from torch import nn

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.device import resolve_device, resolve_dtype
from opensana.memory import memory_needed
from opensana.presets import AUTOENCODERS, TRANSFORMERS, ModelFacts, facts, published_autoencoder
from opensana.transformer.model import Transformer
from opensana.weights.published import hub_id

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
    others = main if main != torch.float16 else resolve_dtype(place, None, torch.bfloat16)
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

"""Writing a model folder: it appears complete, or not at all."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.preview import Preview
from opensana.errors import NumericsError, OpensanaError
from opensana.files.writing import atomic_folder, write_json
from opensana.models.index import INDEX, ModelDefaults, ModelInfo, model_index
from opensana.models.parts import QUANTIZATION, SPRINT_PART
from opensana.models.scheduler import DIFFUSERS_VERSION, DPM, SCM, write_scheduler
from opensana.runtime.quantize import quantization_of
from opensana.text.encoder import TextEncoder
from opensana.text.loading import save_model
from opensana.transformer.controlnet import ControlNet
from opensana.transformer.model import Transformer
from opensana.weights.safetensors import is_finite, write_safetensors


def write_model(
    folder: str | Path,
    *,
    text: TextEncoder,
    transformer: Transformer,
    autoencoder: Autoencoder,
    info: ModelInfo,
    sprint: Transformer | None = None,
    preview: Preview | None = None,
) -> Path:
    """The whole model in the published layout; the folder appears complete or not at all."""
    with model_folder(Path(folder)) as partial:
        write_transformer(transformer, partial / "transformer")
        if sprint is not None:
            write_transformer(sprint, partial / SPRINT_PART)
        write_autoencoder(autoencoder, partial / "vae", preview=preview)
        write_scheduler(partial, info.shift, info.scheduler)
        save_model(text.model, partial / "text_encoder")
        text.tokenizer.save_pretrained(partial / "tokenizer")
        classes = (type(text.model).__name__, type(text.tokenizer).__name__)
        defaults = replace(info.defaults, text_encoder=None)
        write_json(
            partial / INDEX, model_index(*classes, defaults=defaults, scheduler=info.scheduler)
        )
    return Path(folder)


def write_model_without_text(
    folder: str | Path,
    *,
    transformer: Transformer,
    autoencoder: Autoencoder,
    shift: float,
    defaults: ModelDefaults,
    sprint: Transformer | None = None,
    preview: Preview | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """A model whose defaults name the package of its text encoder, stored in `dtype`."""
    assert defaults.text_encoder is not None, "the defaults must say where the text encoder is"
    scheduler = SCM if transformer.config.guidance_embeds else DPM
    with model_folder(Path(folder)) as partial:
        write_transformer(transformer, partial / "transformer", dtype=dtype)
        if sprint is not None:
            write_transformer(sprint, partial / SPRINT_PART, dtype=dtype)
        write_autoencoder(autoencoder, partial / "vae", preview=preview, dtype=dtype)
        write_scheduler(partial, shift, scheduler)
        write_json(partial / INDEX, model_index(None, None, defaults=defaults, scheduler=scheduler))
    return Path(folder)


def write_transformer(module: Transformer, part: Path, *, dtype: torch.dtype | None = None) -> None:
    """config.json and weights of one transformer, stored in `dtype` if given."""
    found = quantization_of(module)
    extra = {} if found is None else {QUANTIZATION: found.to_dict()}
    _write_part(module, {**module.config.to_dict(), **extra}, part, dtype)


def write_controlnet(module: ControlNet, part: Path, *, dtype: torch.dtype | None = None) -> None:
    """config.json and weights of one ControlNet, stored in `dtype` if given."""
    _write_part(module, module.config.to_dict(), part, dtype)


def write_autoencoder(
    module: Autoencoder,
    part: Path,
    *,
    preview: Preview | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """config.json and weights of one autoencoder, stored in `dtype` if given, and its previews."""
    _write_part(module, module.config.to_dict(), part, dtype)
    if preview is not None:
        preview.write(part)


def _write_part(
    module: nn.Module, config: Mapping[str, Any], part: Path, dtype: torch.dtype | None
) -> None:
    state = module.state_dict()
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    for key, value in state.items():
        if not is_finite(value):
            raise NumericsError(f"{key!r} holds NaN or infinite values: not written to {part}")
    write_safetensors(state, part)
    write_json(part / "config.json", {"_diffusers_version": DIFFUSERS_VERSION, **config})


def model_folder(folder: Path) -> AbstractContextManager[Path]:
    """The folder while it is written; what exists there must be a model, or empty."""
    if folder.exists() and not _may_replace(folder):
        raise OpensanaError(f"{folder} exists and is not a model folder: give another place")
    return atomic_folder(folder)


def _may_replace(folder: Path) -> bool:
    return folder.is_dir() and ((folder / INDEX).is_file() or not any(folder.iterdir()))

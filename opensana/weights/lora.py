"""LoRA files as diffusers writes and reads them, merged exactly into a model's weights.

A file holds two thin matrices for each layer W [O, I] that it changes, `lora_A.weight` [R, I] and
`lora_B.weight` [O, R], under the published name of the layer. The layer becomes
W + scale * alpha / R * B A. A convolution is a matrix with I = channels x window.

O outputs, I inputs, R rank.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensana.errors import ConfigError, WeightsError, near
from opensana.weights.files import (
    PICKLED,
    check_finite,
    pickle_note,
    read_metadata,
    read_safetensors,
)
from opensana.weights.locate import locate_file

FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
METADATA = "lora_adapter_metadata"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
EXAMPLE = f"{PREFIX}transformer_blocks.0.attn1.to_q{DOWN}"
# Settings of peft that would make another change than scale * alpha / R * B A.
UNKNOWN_KINDS = ("use_dora", "lora_bias", "use_qalora", "use_bdlora")


@dataclass(frozen=True)
class LowRank:
    """The change of one layer: strength * up down, as float32."""

    down: Tensor  # [R, I]
    up: Tensor  # [O, R]
    strength: float

    @property
    def product(self) -> Tensor:
        """[O, I]."""
        return self.strength * (self.up @ self.down)


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read: a change for each layer by its name in the published transformer."""

    file: Path
    layers: Mapping[str, LowRank]

    @property
    def sha256(self) -> str:
        """Which file it is, whatever its name."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_lora(source: str | Path) -> Lora:
    """Read a file, a folder with `pytorch_lora_weights.safetensors`, or `hf://owner/name/file`.

    WeightsError for a pickle, for keys that are no LoRA of a Sana transformer, and for settings
    that would make another change.
    """
    file = lora_file(source)
    state = read_safetensors(file)
    check_finite(state, where=file)
    settings = _settings(file)
    layers = {name: _low_rank(file, name, state, settings) for name in _names(file, state)}
    return Lora(file, layers)


def lora_file(source: str | Path) -> Path:
    """The safetensors file that is meant; nothing else is ever opened."""
    if str(source).startswith("hf://"):
        return locate_file(source)
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / FILE).is_file():
            raise WeightsError(f"{path} holds no {FILE}{pickle_note(path)}")
        return path / FILE
    if path.suffix in PICKLED:
        raise WeightsError(f"{path} may hold code and is never opened: get the safetensors file")
    if not path.is_file():
        raise WeightsError(f"no LoRA file or folder {path}")
    return path


def apply_lora(module: nn.Module, source: str | Path, *, scale: float = 1.0) -> dict[str, Any]:
    """Read and merge a LoRA; returns what a picture records of it."""
    lora = read_lora(source)
    merge_lora(module, lora, scale=scale)
    return {"lora_sha256": lora.sha256, "lora_scale": float(scale)}


@torch.no_grad()
def merge_lora(module: nn.Module, lora: Lora, *, scale: float = 1.0) -> None:
    """Add `scale` times the changes to the module's weights, in place; all of them, or none.

    The module has published names and plain layers. Changed weights become float32, whatever they
    were stored in, so that a later cast rounds their sum once.
    """
    if not isfinite(scale):
        raise ConfigError(f"lora_scale must be a finite number, got {scale}; try 1.0")
    weights = {
        name.removesuffix(".weight"): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(".weight") and parameter.ndim > 1
    }
    for name, change in lora.layers.items():
        _check_fit(lora.file, name, change, weights)
    for name, change in lora.layers.items():
        weight = weights[name]
        added = scale * change.product.to(weight.device).view(weight.shape)
        weight.data = weight.float() + added


def _check_fit(file: Path, name: str, change: LowRank, weights: Mapping[str, nn.Parameter]) -> None:
    if name not in weights:
        raise WeightsError(
            f"{file}: {name!r} is no layer of this model{near(name, weights)}; the LoRA belongs to"
            " another architecture"
        )
    outputs, inputs = weights[name].flatten(1).shape
    got = (change.up.shape[0], change.down.shape[1])
    if got != (outputs, inputs):
        raise WeightsError(
            f"{file}: the LoRA of {name!r} is for a layer of {got[1]} inputs and {got[0]} outputs,"
            f" the model's has {inputs} and {outputs}: it belongs to another architecture"
        )


def _names(file: Path, state: Mapping[str, Tensor]) -> list[str]:
    """The layers of a file, each of which has both matrices."""
    parts: dict[str, set[str]] = {}
    for key in state:
        name, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        if not key.startswith(PREFIX) or f".lora_{part}" not in (DOWN, UP):
            raise WeightsError(
                f"{file}: {key!r} is no key of a Sana LoRA; they are like {EXAMPLE!r}"
            )
        parts.setdefault(name, set()).add(f".lora_{part}")
    for name, found in parts.items():
        if len(found) < 2:
            raise WeightsError(f"{file}: {name!r} has {found.pop()[1:]} alone, half of a LoRA")
    if not parts:
        raise WeightsError(f"{file} holds no tensors")
    return list(parts)


def _low_rank(
    file: Path, name: str, state: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> LowRank:
    down, up = (state[f"{PREFIX}{name}{part}"] for part in (DOWN, UP))
    for tensor in (down, up):
        if tensor.ndim < 2 or not tensor.is_floating_point():
            raise WeightsError(f"{file}: {name!r} has a LoRA that is no matrix of numbers")
    down, up = down.float().flatten(1), up.float().flatten(1)
    rank = len(down)
    if rank != up.shape[1] or not rank:
        raise WeightsError(
            f"{file}: the ranks of {name!r} differ: lora_A has {rank}, lora_B {up.shape[1]}"
        )
    divisor = sqrt(rank) if settings.get("use_rslora") else rank
    return LowRank(down, up, _alpha(settings, name, rank) / divisor)


# ------------------------------------------------------------------ alpha


def lora_metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    """The header entry in which diffusers keeps peft's settings."""
    return {METADATA: json.dumps({PREFIX + name: value for name, value in settings.items()})}


def _settings(file: Path) -> dict[str, Any]:
    """peft's settings from the header; none where the file has none, and alpha is the rank."""
    text = read_metadata(file).get(METADATA)
    try:
        found = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: its {METADATA} is not valid JSON") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{file}: its {METADATA} must be one JSON object")
    settings = {name.removeprefix(PREFIX): value for name, value in found.items()}
    for kind in UNKNOWN_KINDS:
        if settings.get(kind):
            raise WeightsError(f"{file} was trained with {kind}, which is not supported")
    alphas = settings.setdefault("alpha_pattern", None) or {}
    if not isinstance(alphas, dict) or not all(map(_is_number, _alphas(settings, alphas))):
        raise WeightsError(f"{file}: lora_alpha and alpha_pattern must be finite numbers")
    return settings | {"alpha_pattern": alphas}


def _alphas(settings: Mapping[str, Any], alphas: Mapping[str, Any]) -> Iterator[Any]:
    yield settings.get("lora_alpha", 1)
    yield from alphas.values()


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value)


def _alpha(settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """The layer's own alpha if a pattern, which is the end of a name, has one."""
    for pattern, alpha in settings["alpha_pattern"].items():
        name = pattern.removeprefix("^")
        if layer == name or (name == pattern and layer.endswith(f".{name}")):
            return alpha
    return settings.get("lora_alpha", rank)

"""LoRA files as other tools write them, merged exactly into a model's weights.

A file holds two thin matrices for each layer W [O, I] that it changes, A [R, I] and B [O, R]. The
layer becomes W + scale * alpha / R * B A. A convolution is a matrix with I = channels x window.

O outputs, I inputs, R rank.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensana.errors import ConfigError, WeightsError, near
from opensana.files.writing import read_json
from opensana.weights.locate import locate_file
from opensana.weights.lora_names import (
    ALPHA,
    PEFT_PREFIX,
    AdaptedLayer,
    adapted_layers,
)
from opensana.weights.lora_settings import LoraSettings, read_settings
from opensana.weights.low_rank import LowRank, changes
from opensana.weights.safetensors import (
    PICKLED,
    check_finite,
    pickle_note,
    read_metadata,
    read_safetensors,
)

FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."
METADATA = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILES_SHOWN = 3


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read: a change for each layer by its name in the published transformer."""

    file: Path
    layers: Mapping[str, LowRank]
    notes: tuple[str, ...] = ()
    """What the user should know of how the file was read."""

    @property
    def name(self) -> str:
        """The file's own, or that of its folder where a tool names every file the same."""
        file = self.file.absolute()
        return file.parent.name if file.name in (FILE, PEFT_FILE) else file.stem

    @property
    def rank(self) -> int:
        """The largest of its layers'."""
        return max(len(change.down) for change in self.layers.values())

    @cached_property
    def sha256(self) -> str:
        """Which file it is, whatever its name."""
        with self.file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


LoraSource = str | Path | Lora


def read_lora(source: LoraSource) -> Lora:
    """Read a file, a folder with one, or `hf://owner/name/file`; what is read stays as it is.

    WeightsError for a pickle, for keys that are no LoRA of a Sana transformer, and for settings
    that would make another change.
    """
    if isinstance(source, Lora):
        return source
    file = lora_file(source)
    state = read_safetensors(file)
    check_finite(state, where=file)
    header, adapted = read_metadata(file), adapted_layers(file, state)
    settings = _settings(file, source, header, adapted)
    layers: dict[str, LowRank] = {}
    for layer in adapted:
        for name, change in changes(file, layer, state, settings):
            if name in layers:
                raise WeightsError(f"{file} changes {name!r} twice, under two names")
            layers[name] = change
    unsaid = settings is None and not any(ALPHA in layer.keys for layer in adapted)
    return Lora(file, layers, tuple(_notes(file, header, adapted)) if unsaid else ())


def lora_file(source: str | Path) -> Path:
    """The safetensors file that is meant; nothing else is ever opened."""
    if str(source).startswith("hf://"):
        return locate_file(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return file_in(path)
    if path.suffix.lower() in PICKLED:
        raise WeightsError(f"{path} may hold code and is never opened: get the safetensors file")
    if not path.is_file():
        raise WeightsError(
            f"no LoRA file or folder {path}; one on the hub is hf://owner/repository/file"
        )
    return path


def file_in(folder: Path) -> Path:
    """The file that diffusers or peft writes, or the only one."""
    for name in (FILE, PEFT_FILE):
        if (folder / name).is_file():
            return folder / name
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() == ".safetensors" and not path.name.startswith(".")
    )
    if len(found) > 1:
        shown = ", ".join(found[:FILES_SHOWN]) + (", ..." if len(found) > FILES_SHOWN else "")
        raise WeightsError(f"{folder} holds {len(found)} files ({shown}): name the one you mean")
    if not found:
        raise WeightsError(f"{folder} holds no {FILE}{pickle_note(folder)}")
    return folder / found[0]


# ------------------------------------------------------------------ into a model


def paired(
    lora: LoraSource | Sequence[LoraSource] | None, scale: float | Sequence[float] = 1.0
) -> list[tuple[LoraSource, float]]:
    """Each LoRA with its scale, which is 1 for all where none is given."""
    sources = [lora] if isinstance(lora, LoraSource) else list(lora or ())
    given = list(scale) if isinstance(scale, Sequence) else [] if scale == 1 else [scale]
    scales = given or [1.0] * len(sources)
    if len(scales) != len(sources):
        raise ConfigError(
            f"lora_scale has {len(scales)} values for {len(sources)} LoRAs; give one for each, in "
            "the same order, or none"
        )
    for one in scales:
        _check_scale(one)
    return list(zip(sources, scales, strict=True))


@dataclass(frozen=True)
class MergedLora:
    """What a picture records of a LoRA."""

    name: str
    sha256: str
    scale: float


def apply_loras(module: nn.Module, loras: Sequence[tuple[Lora, float]]) -> dict[str, Any]:
    """Merge LoRAs, each at its scale; returns what a picture records of them."""
    for lora, scale in loras:
        merge_lora(module, lora, scale=scale)
    return lora_provenance(
        [MergedLora(lora.name, lora.sha256, float(scale)) for lora, scale in loras]
    )


def lora_provenance(loras: Sequence[MergedLora]) -> dict[str, Any]:
    """The entries of a picture's record: plain values for one LoRA, lists for several."""
    columns = {
        "lora_name": [lora.name for lora in loras],
        "lora_sha256": [lora.sha256 for lora in loras],
        "lora_scale": [lora.scale for lora in loras],
    }
    if len(loras) == 1:
        return {key: values[0] for key, values in columns.items()}
    return columns if loras else {}


def merged_loras(provenance: Mapping[str, Any]) -> list[MergedLora]:
    """The LoRAs of such entries."""
    values = [provenance.get(f"lora_{part}", []) for part in ("name", "sha256", "scale")]
    if not isinstance(values[0], list):
        return [MergedLora(*values)]
    return [MergedLora(*row) for row in zip(*values, strict=True)]


@torch.no_grad()
def merge_lora(module: nn.Module, lora: Lora, *, scale: float = 1.0) -> None:
    """Add `scale` times the changes to the module's weights, in place; all of them, or none.

    The module has published names and plain layers.
    """
    _check_scale(scale)
    weights = {
        name.removesuffix(".weight"): parameter
        for name, parameter in module.named_parameters()
        if name.endswith(".weight") and parameter.ndim > 1
    }
    check_fit(lora, {name: _sides(weight) for name, weight in weights.items()})
    for name, change in lora.layers.items():
        weights[name].data = merged_weight(weights[name], change, scale)


def merged_weight(weight: Tensor, change: LowRank, scale: float) -> Tensor:
    """The weight with `scale` times the change.

    It becomes float32, whatever it was stored in, so that a later cast rounds the sum once.
    """
    return weight.float() + scale * change.product.to(weight.device).view(weight.shape)


def _sides(weight: Tensor) -> tuple[int, int]:
    """Outputs and inputs of a layer."""
    outputs, inputs = weight.flatten(1).shape
    return outputs, inputs


def _check_scale(scale: float) -> None:
    if not isfinite(scale):
        raise ConfigError(f"lora_scale must be a finite number, got {scale}; try 1.0")


def check_fit(lora: Lora, layers: Mapping[str, tuple[int, int]]) -> None:
    """WeightsError where the LoRA is for other layers than these, (outputs, inputs) by name."""
    for name, change in lora.layers.items():
        if name not in layers:
            raise WeightsError(
                f"{lora.file}: {name!r} is no layer of this model{near(name, layers)}; the LoRA "
                "belongs to another architecture"
            )
        outputs, inputs = layers[name]
        got = (change.up.shape[0], change.down.shape[1])
        if got != (outputs, inputs):
            raise WeightsError(
                f"{lora.file}: the LoRA of {name!r} is for a layer of {got[1]} inputs and {got[0]} "
                f"outputs, the model's has {inputs} and {outputs}: it belongs to another "
                "architecture"
            )


# ------------------------------------------------------------------ peft's settings


def lora_metadata(settings: Mapping[str, Any]) -> dict[str, str]:
    """The header entry in which diffusers keeps peft's settings."""
    return {METADATA: json.dumps({PREFIX + name: value for name, value in settings.items()})}


def _settings(
    file: Path, source: str | Path, header: Mapping[str, str], layers: Sequence[AdaptedLayer]
) -> LoraSettings | None:
    """peft's settings from the header, or from the file that peft puts beside its own."""
    if text := header.get(METADATA):
        found = {key.removeprefix(PREFIX): value for key, value in _parsed(file, text).items()}
        return read_settings(found, where=str(file)) if found else None
    config = _config_beside(file, source, layers)
    return read_settings(read_json(config), where=str(config)) if config else None


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: its {METADATA} is not valid JSON") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{file}: its {METADATA} must be one JSON object")
    return found


def _config_beside(file: Path, source: str | Path, layers: Sequence[AdaptedLayer]) -> Path | None:
    """peft's settings file, where it is this file's: peft's own, or alone in a folder with it."""
    config, hub = file.parent / PEFT_CONFIG, str(source).startswith("hf://")
    if hub and file.name == PEFT_FILE:
        return locate_file(f"{str(source).rpartition('/')[0]}/{PEFT_CONFIG}")
    own = _is_of_peft(file, layers) or (not hub and Path(source).expanduser().is_dir())
    return config if own and config.is_file() else None


def _is_of_peft(file: Path, layers: Sequence[AdaptedLayer]) -> bool:
    keys = (key for layer in layers for key in layer.keys.values())
    return file.name == PEFT_FILE or any(key.startswith(PEFT_PREFIX) for key in keys)


def _notes(file: Path, header: Mapping[str, str], layers: Sequence[AdaptedLayer]) -> Iterator[str]:
    """What may make the strength another than meant, where alpha is taken to be the rank."""
    for name, value in header.items():
        if "alpha" in name.lower():
            yield (
                f"{file}: the header's {name} = {value[:40]!r} is not in the form that tools read,"
                " so alpha is taken to be the rank; change the strength with the LoRA's scale"
            )
    if _is_of_peft(file, layers):
        yield f"{file}: no {PEFT_CONFIG} lies beside it, so alpha is taken to be the rank"

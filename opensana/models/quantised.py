"""A model folder in fewer bits: chosen parts are quantised, layer by layer, all else is copied.

Files are mapped, so that a part of any size is made in the memory of its result.
"""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from opensana.errors import ConfigError, near
from opensana.files.writing import read_json, write_json
from opensana.layers.weight_only import quantised_rows
from opensana.models.index import ModelInfo, read_info
from opensana.models.load import load_transformer
from opensana.models.parts import QUANTIZATION, SPRINT_PART, part_variant
from opensana.models.parts import quantization as stored_quantization
from opensana.models.save import model_folder, write_transformer
from opensana.models.schemes import TEXT_GROUP
from opensana.runtime.quantize import Quantization, quantize
from opensana.text.demo_encoder import METHOD
from opensana.text.gguf import gguf_in
from opensana.text.loading import check_config
from opensana.weights.aligned import align
from opensana.weights.locate import locate
from opensana.weights.lora import Lora, apply_loras
from opensana.weights.safetensors import (
    check_finite,
    read_headers,
    read_safetensors,
    write_safetensors,
)

Part = Literal["transformer", "text"]
REPORT = ("report.json", "report.md", "report.png")
TEXT = "text_encoder"
TEXT_KINDS = ("gemma2", "gemma3_text")


def parse_parts(text: str) -> tuple[Part, ...]:
    """The parts of "transformer,text"; ConfigError for one that cannot be quantised."""
    parts, known = [part.strip() for part in text.split(",") if part.strip()], get_args(Part)
    for part in parts:
        if part not in known:
            raise ConfigError(f"no such part {part!r}{near(part, known)}: {', '.join(known)}")
    if not parts:
        raise ConfigError(f"no part to quantise: name some of {', '.join(known)}")
    return tuple(parts)  # pyright: ignore[reportReturnType]


def write_quantised(
    model: str | Path,
    folder: str | Path,
    quantization: Quantization,
    *,
    parts: Collection[Part] = ("transformer",),
    loras: Sequence[tuple[Lora, float]] = (),
    variant: str | None = None,
) -> Path:
    """The model with these parts quantised, LoRAs merged before; complete or not at all.

    A text encoder's matrices take 8 bits, whatever the scheme of the transformer. ConfigError for
    a part that is quantised already, and for a text encoder that is no Gemma.
    """
    source = locate(model, variant=variant)
    info = read_info(source, name=str(model))
    made = {"transformer", SPRINT_PART} if "transformer" in parts else set()
    networks = [name for name in sorted(made) if (source / name).is_dir()]
    for name in networks:
        if (found := stored_quantization(source / name)) is not None:
            raise ConfigError(f"{model} is quantised already ({found.scheme}); name the plain one")
    if "text" in parts:
        _check_text(source / TEXT, info, str(model))
        made |= {TEXT}
    if loras and not networks:
        raise ConfigError("a LoRA changes the transformer, which is not among the parts")
    with model_folder(Path(folder)) as partial:
        for name in networks:
            network = load_transformer(source / name, variant=variant)
            apply_loras(network, loras)
            quantize(network, quantization)
            write_transformer(network, partial / name)
            del network
        if "text" in parts:
            _write_text(source / TEXT, partial / TEXT, variant)
        ignored = shutil.ignore_patterns(*made, *REPORT)
        shutil.copytree(source, partial, ignore=ignored, dirs_exist_ok=True)
    return Path(folder)


def stored_bytes(part: Path, variant: str | None = None) -> int:
    """Bytes of the tensors in a part's files."""
    headers = read_headers(part, variant=part_variant(part, variant))
    return sum(tensor.bytes for tensor in headers.values())


def _check_text(part: Path, info: ModelInfo, model: str) -> None:
    """ConfigError for a text encoder that cannot be brought to 8 bits here."""
    if info.defaults.text_encoder:
        raise ConfigError(f"the text encoder of {model} is a package, in 8 bits already")
    if gguf_in(part) is not None:
        raise ConfigError(f"the text encoder of {model} is a GGUF file, in 8 bits already")
    config = check_config(part)
    if QUANTIZATION in config:
        raise ConfigError(f"the text encoder of {model} is quantised already; name the plain one")
    if (kind := config.get("model_type")) not in TEXT_KINDS:
        raise ConfigError(
            f"the text encoder of {model} is {kind!r}, and only {', '.join(TEXT_KINDS)} are kept "
            "in 8 bits; leave text out of the parts"
        )


def _write_text(source: Path, part: Path, variant: str | None) -> None:
    """A decoder's matrices in 8 bits, in groups of channels.

    A scale for a whole row would cost accuracy: a few channels of a language model are far larger.
    Matrices are written flat: transformers only warns of a method that it does not know and would
    take the whole numbers for weights, but refuses tensors of another shape.
    """
    stored, state = read_safetensors(source, variant=part_variant(source, variant)), {}
    for name, tensor in stored.items():
        if "lm_head" in name:
            continue
        if name.endswith(".weight") and tensor.ndim == 2:
            group = TEXT_GROUP if tensor.shape[1] % TEXT_GROUP == 0 else None
            weight, state[f"{name}_scale"] = quantised_rows(tensor, group)
            state[name] = weight.flatten()
        else:
            state[name] = tensor
    check_finite(state, where=source)
    part.mkdir()
    for file in write_safetensors(state, part, name="model"):
        if file.suffix == ".safetensors":  # not the index of shards
            plain = file.rename(file.with_suffix(".plain"))
            align(plain, file)
            plain.unlink()
    write_json(part / "config.json", {**read_json(source / "config.json"), QUANTIZATION: METHOD})

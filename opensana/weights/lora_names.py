"""The names that tools give to the tensors of a LoRA, read by tables.

A key is a prefix, a layer and a part: diffusers, peft, kohya, OneTrainer and ComfyUI differ in all
three. The layer may have its published name, the one of the official code, or either with
underscores. A key that no table knows is an error.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from opensana.errors import WeightsError, near
from opensana.weights.rename_tables import SPRINT_TRANSFORMER, TRANSFORMER, TRANSFORMER_BLOCK

DOWN, UP, ALPHA = "lora_A", "lora_B", "alpha"
# What stands behind the layer's name: diffusers and peft, a module's own state, kohya, old
# diffusers.
PARTS: dict[str, str] = {
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_A.default_0.weight": DOWN,
    ".lora_B.default_0.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    ".alpha": ALPHA,
}
# What stands before it; several may follow one another.
PEFT_PREFIX = "base_model.model."
PREFIXES = (
    *("transformer.", PEFT_PREFIX, "diffusion_model.", "model.diffusion_model."),
    *("module.", "_orig_mod."),
)
# Before a name whose dots are underscores: kohya, OneTrainer, LyCORIS.
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
TEXT_ENCODER = ("text_encoder", "lora_te")
# Parts of other methods, for the message alone; a key is looked at with a dot at its end.
OTHER_METHODS: dict[str, str] = {
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".lora_mid.": "LoCon with a third matrix",
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".vera_": "VeRA",
    ".lora_diag": "KaSA",
    ".diff.": "whole differences of weights",
    ".diff_b.": "whole differences of weights",
    ".bias.": "trained biases",
    ".modules_to_save.": "layers trained as a whole",
}
EXAMPLE = "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"

_OFFICIAL = SPRINT_TRANSFORMER | TRANSFORMER
_BLOCK_PARTS = {
    *TRANSFORMER_BLOCK,
    *(name for names in TRANSFORMER_BLOCK.values() for name in names),
}
_LAYERS = {*_OFFICIAL, *_OFFICIAL.values(), *SPRINT_TRANSFORMER.values()}
_ROOTS = {"transformer_blocks", "blocks", *(name.partition(".")[0] for name in _LAYERS)} - {""}
_DOTTED = {name.replace(".", "_"): name for name in _BLOCK_PARTS | _LAYERS if name}


@dataclass(frozen=True)
class AdaptedLayer:
    """One layer of a file: its published names and the keys of its parts."""

    name: str
    """As the training tool called it: what patterns in its settings are matched with."""
    published: tuple[str, ...]
    """Several for a projection that the official code has fused; they share the rows of `up`."""
    keys: dict[str, str] = field(default_factory=dict[str, str])


def adapted_layers(file: Path, keys: Iterable[str]) -> list[AdaptedLayer]:
    """The layers of a file, each of which has both matrices; WeightsError for any other key."""
    layers: dict[tuple[str, ...], AdaptedLayer] = {}
    for key in keys:
        name, part = _split(file, key)
        published = _published(file, key, name)
        layer = layers.setdefault(published, AdaptedLayer(_seen(name), published))
        if part in layer.keys:
            raise WeightsError(f"{file} has {layer.keys[part]!r} twice: the other is {key!r}")
        layer.keys[part] = key
    for layer in layers.values():
        _check_whole(file, layer)
    if not layers:
        raise WeightsError(f"{file} holds no tensors")
    return list(layers.values())


def _split(file: Path, key: str) -> tuple[str, str]:
    """The layer's name, prefixes included, and the part."""
    if key.startswith(TEXT_ENCODER):
        raise WeightsError(
            f"{file}: {key!r} is for the text encoder; only the transformer takes one"
        )
    suffix = next((suffix for suffix in PARTS if key.endswith(suffix)), None)
    if suffix is None:
        raise _unknown(file, key)
    return key.removesuffix(suffix), PARTS[suffix]


def _seen(name: str) -> str:
    """Without the prefix that is written when a file is saved."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _published(file: Path, key: str, name: str) -> tuple[str, ...]:
    bare = name
    while prefix := next((prefix for prefix in PREFIXES if bare.startswith(prefix)), ""):
        bare = bare.removeprefix(prefix)
    flat = next((prefix for prefix in FLAT_PREFIXES if bare.startswith(prefix)), None)
    if flat is not None:
        bare = _dotted(file, key, bare.removeprefix(flat))
    elif bare == name and name.partition(".")[0] not in _ROOTS:
        raise _unknown(file, key)
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", bare)
    if block and block[2] in TRANSFORMER_BLOCK:
        return tuple(
            f"transformer_blocks.{block[1]}.{part}" for part in TRANSFORMER_BLOCK[block[2]]
        )
    return (_OFFICIAL.get(bare) or bare,)


def _dotted(file: Path, key: str, flat: str) -> str:
    """`transformer_blocks_0_attn1_to_q` -> `transformer_blocks.0.attn1.to_q`."""
    block = re.fullmatch(r"(transformer_blocks|blocks)_(\d+)_(.+)", flat)
    part = block[3] if block else flat
    if part not in _DOTTED:
        raise _unknown(file, key, near(part, _DOTTED))
    return f"{block[1]}.{block[2]}.{_DOTTED[part]}" if block else _DOTTED[part]


def _unknown(file: Path, key: str, hint: str = "") -> WeightsError:
    for mark, method in OTHER_METHODS.items():
        if mark in f"{key}.":
            return WeightsError(f"{file}: {key!r} is no key of a Sana LoRA but of {method}")
    return WeightsError(
        f"{file}: {key!r} is no key of a Sana LoRA{hint}; they are like {EXAMPLE!r}"
    )


def _check_whole(file: Path, layer: AdaptedLayer) -> None:
    found = [part for part in (DOWN, UP) if part in layer.keys]
    if not found:
        key = layer.keys[ALPHA]
        raise WeightsError(f"{file}: {key!r} is no key of a Sana LoRA without its two matrices")
    if len(found) < 2:
        part = ".".join(layer.keys[found[0]].split(".")[-2:])
        raise WeightsError(f"{file}: {layer.name!r} has {part} alone, half of a LoRA")

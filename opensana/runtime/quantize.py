"""Fewer bits for the layers of a transformer, applied from outside like packing.

What stays in full precision is what the paper leaves there (section 4): norms and the core of
linear attention, which hold no layer, the keys and values of the cross-attention, and the first and
last layers. Names of modules are those of the plain model; a quantised layer holds other tensors.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from opensana.config import build
from opensana.errors import ConfigError, WeightsError, near
from opensana.layers.int4 import RANK, Int4Linear, Int4Pointwise
from opensana.layers.weight_only import (
    WeightOnlyLinear,
    WeightOnlyPointwise,
    plain_weight,
)
from opensana.runtime.float8 import Float8Linear, Float8Pointwise
from opensana.runtime.int8 import Int8Linear, Int8Pointwise
from opensana.runtime.int8_block import Int8Block, Operations, PlainOperations
from opensana.runtime.int8_kernels import CompiledOperations
from opensana.runtime.packed import PackedLinear, can_pack
from opensana.transformer.model import Stack

SchemeName = Literal["w8a8", "fp8", "w8", "w4"]

KEPT = {
    "patch_embed": "first layer",
    "time_embed": "first layer, of the time",
    "caption_projection": "first layer, of the text",
    "attn2.to_k": "keys of the text, made once a prompt",
    "attn2.to_v": "values of the text, made once a prompt",
    "proj_out": "last layer",
}
"""Parts of names, and why the layers that have them keep their precision."""
TWICE = "conv_point"
"""What w8a8 gives tokens of two 8-bit numbers: behind the gate a few channels are far larger."""
METHOD = "opensana"
MEASURED_ROWS, MEASURED_CALLS, LEAST_WIDTH = 1024, 5, 256
CAPABILITIES = {"w8a8": (7, 5), "fp8": (8, 9)}
"""The first NVIDIA cards that multiply in 8 bits: Turing whole numbers, Ada and Hopper floats."""
MULTIPLES = {"w8a8": 8, "fp8": 16}
"""What the sides of such a matrix are multiples of on CUDA."""
REFERENCE_KERNEL = 30
"""A product that takes so many times a float32 one is no fast kernel's."""


@dataclass(frozen=True)
class Quantization:
    """What the `quantization_config` of a config.json says."""

    scheme: SchemeName
    rank: int = 0
    """Of the 16-bit branch of w4."""

    @classmethod
    def named(cls, name: str) -> "Quantization":
        """The scheme of a name as it is applied where nothing else is said."""
        known = get_args(SchemeName)
        if name not in known:
            raise ConfigError(f"unknown scheme {name!r}{near(name, known)}: {', '.join(known)}")
        return cls(name, RANK if name == "w4" else 0)  # pyright: ignore[reportArgumentType]

    def to_dict(self) -> dict[str, Any]:
        """As the ecosystem writes it; other readers refuse the method by its name."""
        rank = {"rank": self.rank} if self.scheme == "w4" else {}
        values = {"quant_method": METHOD, "scheme": self.scheme, **rank}
        return {**values, "modules_to_not_convert": list(KEPT)}

    @classmethod
    def from_config(cls, config: dict[str, Any], where: Path) -> "Quantization":
        """WeightsError for what other programs quantised, by their name for it."""
        method = config.get("quant_method", "an unnamed method")
        if method != METHOD:
            raise WeightsError(
                f"{where} is quantised by {method}, which opensana does not read; get the plain "
                "model, and quantise it with: opensana quantize"
            )
        own = {name: config[name] for name in ("scheme", "rank") if name in config}
        return build(cls, own, where=f"{where}, quantization_config")


def quantize(network: Stack, quantization: Quantization) -> None:
    """Replace the layers that are not `KEPT`, one by one; the network may be on `meta`.

    ConfigError if it is quantised already.
    """
    found = quantization_of(network)
    if found is not None:
        raise ConfigError(f"this model is quantised already ({found.scheme}); name the plain one")
    for parent, name, layer in list(quantizable(network)):
        made = quantised_layer(layer, quantization)
        if isinstance(made, Int8Linear):
            made.twice = name == TWICE
        setattr(parent, name, made)


def quantised_layer(layer: nn.Linear | nn.Conv2d, quantization: Quantization) -> WeightOnlyLinear:
    """The layer in a scheme."""
    linear = isinstance(layer, nn.Linear)
    if quantization.scheme == "w8a8":
        return (Int8Linear if linear else Int8Pointwise).of(layer)
    if quantization.scheme == "fp8":
        return (Float8Linear if linear else Float8Pointwise).of(layer)
    if quantization.scheme == "w8":
        return (WeightOnlyLinear if linear else WeightOnlyPointwise).of(layer)
    return (Int4Linear if linear else Int4Pointwise).of(layer, rank=quantization.rank)


def dequantize(network: Stack) -> None:
    """Plain layers in float32 in place of the quantised ones, as a LoRA needs them."""
    for parent, name, layer in list(_quantised(network)):
        setattr(parent, name, dequantised_layer(layer))


def dequantised_layer(layer: WeightOnlyLinear) -> nn.Linear | nn.Conv2d:
    """The plain layer in float32."""
    weight, biased = plain_weight(layer), layer.bias is not None
    plain: nn.Linear | nn.Conv2d
    with torch.device("meta"):
        if isinstance(layer, WeightOnlyPointwise):
            plain = nn.Conv2d(layer.in_features, layer.out_features, 1, bias=biased)
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=biased)
    plain.weight = nn.Parameter(weight.view(plain.weight.shape), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias, requires_grad=False)
    return plain.eval()


def quantizable(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | nn.Conv2d]]:
    """(the module that holds it, its name there, the layer) of each layer that is quantised."""
    for path, parent in network.named_modules():
        for name, layer in parent.named_children():
            linear = type(layer) is nn.Linear
            pointwise = type(layer) is nn.Conv2d and layer.kernel_size == (1, 1)
            if (linear or pointwise) and kept_because(f"{path}.{name}") is None:
                yield parent, name, layer  # pyright: ignore[reportReturnType]


def kept_because(name: str) -> str | None:
    """Why the layer of a dotted name keeps its precision; None for one that is quantised."""
    return next((why for part, why in KEPT.items() if f".{part}." in f".{name}."), None)


def quantization_of(network: nn.Module) -> Quantization | None:
    """How the network is quantised, read from its layers."""
    layer = next((layer for _, _, layer in _quantised(network)), None)
    if layer is None:
        return None
    if isinstance(layer, Int4Linear):
        return Quantization("w4", layer.down.shape[0])
    if isinstance(layer, Float8Linear):
        return Quantization("fp8")
    return Quantization("w8a8" if isinstance(layer, Int8Linear) else "w8")


def _quantised(network: nn.Module) -> Iterator[tuple[nn.Module, str, WeightOnlyLinear]]:
    for parent in network.modules():
        for name, layer in parent.named_children():
            if isinstance(layer, WeightOnlyLinear):
                yield parent, name, layer


# ------------------------------------------------------------------ where it runs


def join_products(
    network: Stack, kernels: Path | None = None, *, device: torch.device | None = None
) -> None:
    """Have the blocks of a w8a8 network quantise once for all products that read the same tokens.

    That is for a CPU, with a folder for `kernels` in C++; on CUDA `fuse` does it. `device` is where
    it will run, if it is not there yet. ConfigError where that cannot multiply 8-bit numbers.
    """
    first = next(network.parameters())
    where = device or first.device
    check_device("w8a8", where)
    if where.type != "cpu":
        return
    operations: Operations = PlainOperations()
    if kernels is not None and first.dtype == torch.float32:
        operations = CompiledOperations(kernels)
    for index, block in enumerate(network.blocks):
        network.transformer_blocks[index] = Int8Block(block, operations)


def check_device(scheme: str, device: torch.device) -> None:
    """ConfigError where a scheme multiplies 8-bit numbers and the device does not."""
    if scheme not in CAPABILITIES:
        return
    least = CAPABILITIES[scheme]
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found < least:
            other = "w8a8" if found >= CAPABILITIES["w8a8"] else "w8"
            raise ConfigError(
                f"{scheme} needs a GPU of compute capability {_version(least)} or more, this one "
                f"has {_version(found)}; use {other}"
            )
    elif scheme == "fp8":
        raise ConfigError(
            f"fp8 multiplies 8-bit floats on CUDA from compute capability {_version(least)} on, "
            f"got {device}; use {'w8a8' if device.type == 'cpu' else 'w8'}"
        )
    elif device.type != "cpu":
        raise ConfigError(
            f"w8a8 multiplies 8-bit numbers on a CPU or on CUDA, got {device}; use w8"
        )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def check_shapes(network: Stack, device: torch.device) -> None:
    """ConfigError where a matrix has a side that a GPU's 8-bit product does not take."""
    found = quantization_of(network)
    if device.type != "cuda" or found is None or found.scheme not in MULTIPLES:
        return
    unit = MULTIPLES[found.scheme]
    for _, name, layer in _quantised(network):
        sides = layer.out_features, layer.in_features
        if any(side % unit for side in sides):
            raise ConfigError(
                f"on a GPU {found.scheme} multiplies matrices whose sides are multiples of {unit}, "
                f"got {name} with {sides[0]} x {sides[1]}; use w8"
            )


@torch.inference_mode()
def slower_here(
    quantization: Quantization, width: int, device: torch.device, dtype: torch.dtype
) -> str | None:
    """What was measured, in one line, if a product takes longer here than that of a plain layer.

    ConfigError where no fast kernel multiplies 8-bit numbers.
    """
    check_device(quantization.scheme, device)
    width = max(width, LEAST_WIDTH)
    plain: nn.Module = nn.Linear(width, width, bias=False, device=device, dtype=dtype)
    layer = quantised_layer(plain, quantization)  # pyright: ignore[reportArgumentType]
    if can_pack(device, dtype):
        plain = PackedLinear(plain)  # pyright: ignore[reportArgumentType]
    x = torch.randn(1, MEASURED_ROWS, width, device=device, dtype=dtype)
    own, other = (1000 * seconds(lambda part=part: part(x), device) for part in (layer, plain))
    name = quantization.scheme
    measured = (
        f"a product of {MEASURED_ROWS} tokens and {width} channels takes {own:.1f} ms in {name}, "
        f"{other:.1f} ms in {str(dtype).removeprefix('torch.')}"
    )
    if name in CAPABILITIES and own > REFERENCE_KERNEL * other:
        raise ConfigError(f"{measured}: this processor has no fast kernel for {name}; use w8")
    return None if own <= other else f"{name} saves memory here, not time: {measured}"


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of some calls, after one that is not counted.

    On a CPU in the time of one thread, in which others who use the processor do not count.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(MEASURED_CALLS + 1):
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times[1:])

"""The number format of a training's products; weights, losses and averages are always float32."""

import sys
import tomllib
from dataclasses import replace
from typing import Literal, TypeVar

import torch

from opensana.device import cpu_has_bfloat16, has_bfloat16, resolve_dtype
from opensana.errors import ConfigError
from opensana.train.engine.parallel import ALONE, Processes
from opensana.train.recipe import Recipe, require

Some = TypeVar("Some", bound=Recipe)
Format = Literal["float32", "bfloat16"]


def settled(recipe: Some, processes: Processes = ALONE, *, saved: str | None = None) -> Some:
    """The recipe with `dtype = "auto"` resolved: as the checkpoint's recipe `saved`, else the best.

    The best is what all processes have. Every process must call it; ConfigError where the run was
    begun in a format that is not here, since it would go on with other numbers.
    """
    if recipe.dtype != "auto":
        return recipe
    slow = processes.any(best_format(processes.device) == "float32")
    best: Format = "float32" if slow else "bfloat16"
    begun: Format = best if saved is None else tomllib.loads(saved).get("dtype", "float32")
    if begun != best:
        kind = processes.device.type
        if begun == "bfloat16":
            raise ConfigError(
                f"{recipe.run} was begun with products in bfloat16, which this {kind} lacks; go on"
                " where it has been, or say dtype=float32 to go on here with other numbers"
            )
        if processes.first:
            print(
                f"{recipe.run} was begun in float32 and goes on so, to the same bits; this {kind}"
                " has bfloat16 as well",
                file=sys.stderr,
            )
    return replace(recipe, dtype=begun)


def best_format(device: torch.device) -> Format:
    """bfloat16 where the device multiplies in it natively, else float32."""
    native = resolve_dtype(device, None, torch.bfloat16) == torch.bfloat16
    return "bfloat16" if native else "float32"


def check_dtype(recipe: Recipe, device: torch.device) -> None:
    """Raise ConfigError for a format that this device would only emulate, very slowly."""
    has_it = cpu_has_bfloat16() if device.type == "cpu" else has_bfloat16(device)
    kind = "CPU" if device.type == "cpu" else "GPU"
    wanted = f"float32 or auto: this {kind} has no bfloat16 products"
    require(recipe.dtype == "float32" or has_it, "dtype", recipe.dtype, wanted)


def products(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which a step's products are computed."""
    assert recipe.dtype != "auto", "settled before a task is built"
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16")

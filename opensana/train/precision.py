"""The number format of a training's products; weights, losses and averages are always float32."""

import torch

from opensana.device import cpu_has_bfloat16
from opensana.train.recipe import Recipe, require


def check_dtype(recipe: Recipe, device: torch.device) -> None:
    """Raise ConfigError for a format that this CPU would only emulate, very slowly."""
    native = recipe.dtype == "float32" or device.type != "cpu" or cpu_has_bfloat16()
    require(native, "dtype", recipe.dtype, "float32: this CPU has no bfloat16 products")


def products(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which a step's products are computed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=recipe.dtype == "bfloat16")

"""The number formats in which weights are stored: those that are read, and those that are not.

float8 is widened to bfloat16, which holds each of its values exactly and has all operations. Files
whose float8 numbers are to be multiplied by stored scales are other numbers, and are refused.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from opensana.errors import WeightsError

FLOATS: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
FLOAT8: dict[str, torch.dtype] = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}
WHOLE: dict[str, torch.dtype] = {  # counters and tables of places; never weights
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
READ = FLOATS | FLOAT8 | WHOLE
NAMES = {dtype: name for name, dtype in READ.items()}
# The last part of a tensor's name that tells of numbers which are to be scaled.
SCALES = (
    *("scaled_fp8", "scale_weight", "scale_input"),  # ComfyUI's first form
    *("weight_scale", "input_scale", "weight_scale_2", "weight_scale_inv", "comfy_quant"),
)


def check_formats(formats: Mapping[str, str], *, where: str | Path) -> None:
    """WeightsError for the first tensor, by its name and format, that cannot be read."""
    for key, name in formats.items():
        module, _, own = key.rpartition(".")
        if own == "weight_scale" and formats.get(f"{module}.weight") in ("I8", "U8"):
            continue  # a quantised layer: whether the model has such is the strict load's question
        if own in SCALES:
            raise WeightsError(
                f"{where} holds scaled weights ({key!r}), such as scaled float8, which are not "
                "read; get the model in bfloat16, float16 or float32, or in plain float8"
            )
        if name not in READ:
            raise WeightsError(
                f"{where}: {key!r} is stored as {name}, which is not read; get the model in "
                "bfloat16, float16, float32 or float8"
            )


def format_of(tensor: Tensor) -> str:
    """What a safetensors header calls the tensor's numbers; torch's own name if it is not read."""
    plain = tensor.layout == torch.strided
    name = str(tensor.dtype if plain else tensor.layout).removeprefix("torch.")
    return NAMES.get(tensor.dtype, name) if plain else name


def widened(tensor: Tensor) -> Tensor:
    """float8 as bfloat16, exactly; every other tensor as it is."""
    return tensor.to(computed_in(tensor.dtype))


def computed_in(dtype: torch.dtype) -> torch.dtype:
    """The format in which numbers stored as `dtype` are held: bfloat16 for float8."""
    return torch.bfloat16 if dtype in FLOAT8.values() else dtype


def held_dtype(name: str) -> torch.dtype:
    """The format that weights have once they are read, by its name in the header."""
    return computed_in(READ.get(name, torch.float32))

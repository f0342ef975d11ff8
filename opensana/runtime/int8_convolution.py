"""3x3 convolutions of 8-bit maps and 8-bit weights, for inference in float32 on a CPU.

    y = s_map s_channel (q_map * q_channel) + bias,    q = round(x / s),  s = max |x| / 127

Weights have a scale for each output channel, activations one for each map: a picture, or a band of
one. Maps are unsigned, zero point 128, as oneDNN multiplies fast (`int8.py` has the traps).

B batch, C channels in, O out, H W size.
"""

import ctypes
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opensana.layers.convolution import Conv3x3
from opensana.layers.norm import RMSNorm2d, add_normed
from opensana.layers.weight_only import LEAST_SCALE, LEVELS
from opensana.runtime.int8 import ZERO
from opensana.runtime.int8_kernels import TYPES
from opensana.runtime.kernels import compiled

CHUNK = 2**20
"""Numbers that are rounded at once, in memory that stays in the cache."""
# Pointers, sizes, floats and the number of threads, in the order of int8_picture.cpp; the result.
SIGNATURES = {
    "int8_peak": ("pit", ctypes.c_float),
    "int8_steps": ("ppift", None),
    "int8_add_normed": ("pppppiift", None),
}


class MapOperations:
    """What lies between convolutions, in plain torch. A flat map is in the order [H, W, C]."""

    product_dtype = torch.float32
    """In which convolutions are wanted."""

    def scale(self, x: Tensor) -> float:
        """The largest |x| / 127; NaN where a number is not finite, so that all of them will be."""
        low, high = (float(part) for part in torch.aminmax(x))
        return max(high, -low, LEAST_SCALE) / LEVELS if high - low < torch.inf else torch.nan

    def round(self, x: Tensor, scale: float) -> Tensor:
        """A flat map as unsigned 8-bit numbers with zero point 128."""
        made, buffer = x.new_empty(len(x), dtype=torch.uint8), x.new_empty(min(CHUNK, len(x)))
        for part, out in zip(x.split(CHUNK), made.split(CHUNK), strict=True):
            steps = torch.mul(part, 1 / scale, out=buffer[: len(part)])
            out.copy_(steps.add_(ZERO + 0.5))  # what is positive is rounded by losing its fraction
        return made

    def add_normed(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        """x + norm(branch), all [B, C, H, W]; it may overwrite `branch`."""
        return add_normed(x, branch.to(x.dtype), norm)


class CompiledMapOperations(MapOperations):
    """The same in C++ (int8_picture.cpp), one pass each."""

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(str(compiled("int8_picture", folder)))
        # Where the processor has bfloat16, convolutions are written in half the bytes.
        if torch.cpu._is_avx512_bf16_supported():
            self.product_dtype = torch.bfloat16
        self._functions: dict[tuple[str, torch.dtype], Callable[..., float]] = {}
        for name, (types, result) in SIGNATURES.items():
            for dtype, suffix in ((torch.float32, ""), (torch.bfloat16, "_bfloat16")):
                function = getattr(library, name + suffix)
                function.argtypes, function.restype = [TYPES[t] for t in types], result
                self._functions[name, dtype] = function

    def scale(self, x: Tensor) -> float:
        peak = self._run("int8_peak", x.dtype, x.data_ptr(), len(x))
        return max(peak, LEAST_SCALE) / LEVELS

    def round(self, x: Tensor, scale: float) -> Tensor:
        made = x.new_empty(len(x), dtype=torch.uint8)
        self._run("int8_steps", x.dtype, x.data_ptr(), made.data_ptr(), len(x), 1 / scale)
        return made

    def add_normed(self, x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        if not isinstance(norm, RMSNorm2d) or x.dtype != torch.float32:
            return super().add_normed(x, branch, norm)
        maps = [part.permute(0, 2, 3, 1).contiguous() for part in (x, branch)]
        made = torch.empty_like(maps[0])
        pointers = [part.data_ptr() for part in (*maps, norm.weight, norm.bias, made)]
        sizes = (made.numel() // made.shape[-1], made.shape[-1])
        self._run("int8_add_normed", branch.dtype, *pointers, *sizes, norm.eps)
        return made.permute(0, 3, 1, 2)

    def _run(self, name: str, dtype: torch.dtype, *values: float) -> float:
        return self._functions[name, dtype](*values, torch.get_num_threads())


class Int8Conv3x3(nn.Module):
    """A Conv3x3; `weight` is the rounded one."""

    values: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, plain: Conv3x3, operations: MapOperations, *, then: str = "none") -> None:
        """`then` is what is applied to each number on its way out, by oneDNN's name."""
        super().__init__()
        self.operations, self.then = operations, then
        self.in_channels, self.out_channels = plain.in_channels, plain.out_channels
        weight = plain.weight.detach().float()
        scale = (weight.abs().amax(dim=(1, 2, 3)) / LEVELS).clamp_min(LEAST_SCALE)
        values = (weight / scale[:, None, None, None]).round().to(torch.int8)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("weight_scale", scale, persistent=False)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach().float())
        self._zeros = torch.zeros(self.out_channels, dtype=torch.int64)
        self._packed: tuple[torch.Size, Tensor] | None = None

    @property
    def weight(self) -> Tensor:
        """[O, C, 3, 3] in float32."""
        return self.values.float() * self.weight_scale[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in float32 or bfloat16 to [B, O, H, W] in the operations' product_dtype."""
        if x.requires_grad:
            raise RuntimeError("a quantised layer has no gradient; train the plain model")
        maps = [self._one(part) for part in x.split(1)]
        return maps[0] if len(maps) == 1 else torch.cat(maps)

    def _one(self, x: Tensor) -> Tensor:
        flat = x.permute(0, 2, 3, 1).contiguous().flatten()
        scale = self.operations.scale(flat)
        rounded = self.operations.round(flat, scale)
        values = rounded.view(1, *x.shape[2:], self.in_channels).permute(0, 3, 1, 2)
        return torch.ops.onednn.qconv_pointwise(
            *(values, scale, ZERO, self._pack(values), self.weight_scale, self._zeros, self.bias),
            *([1, 1], [1, 1], [1, 1], 1),
            *(1.0, 0, self.operations.product_dtype, self.then, [], None),
        )

    def _pack(self, x: Tensor) -> Tensor:
        """The weight as the kernel for maps of this size reads it; a decoder meets few sizes."""
        if self._packed is None or self._packed[0] != x.shape:
            made = torch.ops.onednn.qconv_prepack(
                *(self.values, self.weight_scale, 1.0, ZERO),
                *([1, 1], [1, 1], [1, 1], 1, list(x.shape)),
            )
            self._packed = (x.shape, made)
        return self._packed[1]

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

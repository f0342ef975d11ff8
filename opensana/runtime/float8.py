"""FP8: products of 8-bit floating-point numbers (e4m3, arXiv 2209.05433), on cards that have them.

One scale for each token and one for each output channel, as in W8A8, which the product applies:

    y = s_token s_channel (q_token . q_channel) + bias,    q = e4m3(x / s),  s = max |x| / 448

A number has four significant bits wherever it lies, so that channels far larger than all others,
as behind the Mix-FFN's gate, need no second number; of all others less is left than of int8.

C channels in, O out; tokens are [..., C].
"""

from typing import Self

import torch
from torch import Tensor, nn

from opensana.layers.weight_only import (
    LEAST_SCALE,
    WeightOnlyLinear,
    WeightOnlyPointwise,
    check_no_gradient,
)

FORMAT = torch.float8_e4m3fn
MOST = 448.0
"""The largest number of the format."""


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 [..., C] of tokens, and the scale of each, [..., 1] in float32."""
    peak = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True, dtype=torch.float32)
    scale = peak.div_(MOST).clamp_min_(LEAST_SCALE)
    return x.div(scale).to(FORMAT, memory_format=torch.contiguous_format), scale


def multiply(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tokens [..., C] times a weight [O, C] of bytes with scales [O, 1]: [..., O], as x is.

    A GPU writes bfloat16, with the bias in it; a CPU adds up in float32, for comparison.
    """
    values, scale = quantised(x.reshape(-1, x.shape[-1]))
    half = torch.float32 if x.device.type == "cpu" else torch.bfloat16
    made = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
        values,
        weight.view(FORMAT).t(),
        scale,
        weight_scale.t(),
        bias=None if bias is None or half == torch.float32 else bias.to(half),
        out_dtype=half,
    )
    if bias is not None and half == torch.float32:
        made.add_(bias)
    return made.to(x.dtype).view(*x.shape[:-1], -1)


class Float8Linear(WeightOnlyLinear):
    """A linear layer [..., C] to [..., O] for inference; `weight` has the numbers' bytes."""

    @classmethod
    def of(cls, plain: nn.Linear | nn.Conv2d, group: int | None = None) -> Self:
        """Quantise a linear layer, or a 1x1 convolution for `Float8Pointwise`."""
        values, scale = quantised(plain.weight.detach().flatten(1).float())
        bias = None if plain.bias is None else plain.bias.detach()
        return cls(values.view(torch.uint8), scale, None, bias)

    def of_tokens(self, x: Tensor) -> Tensor:
        check_no_gradient(x)
        return multiply(x, self.weight, self.weight_scale, self.bias)

    def widened(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        return (self.weight[rows].view(FORMAT).float() * self.weight_scale[rows]).to(dtype)


class Float8Pointwise(WeightOnlyPointwise, Float8Linear):
    """A 1x1 convolution [B, C, H, W] to [B, O, H, W]."""

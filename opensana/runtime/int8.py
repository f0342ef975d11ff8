"""W8A8: products of 8-bit tokens and 8-bit weights, as the paper deploys Sana (section 4).

Symmetric, one scale for each token and one for each output channel:

    y = s_token s_channel (q_token . q_channel) + bias,    q = round(x / s),  s = max |x| / 127

Where a few channels are far larger than all others, as behind the Mix-FFN's gate, one step is too
coarse for the rest: such tokens are the sum of two 8-bit numbers, the second of 1/254 of a step.

A CPU multiplies unsigned activations (oneDNN, zero point 128): signed ones, and weights that are
not [O, C], meet reference kernels that are hundreds of times slower. CUDA multiplies signed ones.

C channels in, O out; tokens are [..., C].
"""

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from opensana.layers.weight_only import LEAST_SCALE, LEVELS, WeightOnlyLinear, WeightOnlyPointwise

ZERO = 128
FINER = 2 * LEVELS
CUDA_ROWS = 32
"""torch._int_mm takes more than 16 rows."""


class Rows(NamedTuple):
    """Tokens [..., C] as scale * values, or as scale * (values[0] + values[1] / FINER)."""

    values: Tensor  # [..., C] or [2, ..., C]: int8, or on a CPU uint8 with zero point 128
    scale: Tensor  # [..., 1], float32


def quantised(x: Tensor, *, twice: bool = False) -> Rows:
    """Each token of [..., C] with a scale of its own, as one or two 8-bit numbers."""
    peak = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).float()
    scale = (peak / LEVELS).clamp_min_(LEAST_SCALE)
    steps = x * scale.reciprocal()
    if twice:
        whole = steps.round()
        steps = torch.stack([whole, steps.sub_(whole).mul_(FINER)])
    if x.device.type == "cpu":  # what is positive is rounded by cutting its fraction off
        return Rows(steps.add_(ZERO + 0.5).to(torch.uint8), scale)
    return Rows(steps.round_().to(torch.int8), scale)


def scaled(product: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """product * scale + bias, in the memory of the product."""
    return product.mul_(scale) if bias is None else torch.addcmul(bias, product, scale, out=product)


class Int8Linear(WeightOnlyLinear):
    """A linear layer whose tokens are brought to 8 bits too."""

    quantise: Callable[..., Rows] = staticmethod(quantised)
    twice = False
    """Whether its tokens are the sum of two 8-bit numbers."""
    packed: Tensor | None = None
    """The weight as a CPU's kernel reads it; `weight` is then empty."""

    def product(self, rows: Rows, dtype: torch.dtype = torch.float32) -> Tensor:
        """s_channel (q_token . q_channel), [..., O]: without the token's scale and the bias."""
        values, scale = rows.values, self.weight_scale[:, 0]
        if values.device.type == "cpu":
            packed = self._pack() if self.packed is None else self.packed
            made = torch.ops.onednn.qlinear_pointwise(
                *(values, 1.0, ZERO, packed, scale, self.zeros),
                *(None, 1.0, 0, dtype, "none", [], ""),
            )
        else:
            whole = int_mm(values.flatten(0, -2), self.weight.t())
            made = (whole * scale).view(*values.shape[:-1], -1)
        twice = values.ndim > rows.scale.ndim
        return made[0].add_(made[1], alpha=1 / FINER) if twice else made

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("a quantised layer has no gradient; train the plain model")
        rows = self.quantise(x, twice=self.twice)
        return scaled(self.product(rows), rows.scale, self.bias).to(x.dtype)

    def widened(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        return (self._plain()[rows] * self.weight_scale[rows]).to(dtype)

    def _pack(self) -> Tensor:
        """At the first product on a CPU; the plain order is given up."""
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)
        self.packed = cast(Tensor, torch.ops.onednn.qlinear_prepack(self.weight, None))
        self.weight = self.weight.new_empty(0)
        return self.packed

    def _plain(self) -> Tensor:
        """int8 [O, C]."""
        if self.packed is None:
            return self.weight
        mkldnn = self.packed.layout == torch._mkldnn  # pyright: ignore[reportAttributeAccessIssue]
        return (self.packed.to_dense() if mkldnn else self.packed).t().contiguous()

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self._plain()


class Int8Pointwise(WeightOnlyPointwise, Int8Linear):
    """A 1x1 convolution [B, C, H, W] to [B, O, H, W]."""


def int_mm(values: Tensor, weight: Tensor) -> Tensor:
    """int8 [M, C] times int8 [C, O] to int32 [M, O], on CUDA."""
    missing = max(0, CUDA_ROWS - len(values))
    padded = F.pad(values, (0, 0, 0, missing))
    return torch._int_mm(padded, weight)[: len(values)]  # pyright: ignore[reportPrivateImportUsage]

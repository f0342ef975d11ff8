"""W8A8: products of 8-bit tokens and 8-bit weights, as the paper deploys Sana (section 4).

Symmetric, one scale for each token and one for each output channel:

    y = s_token s_channel (q_token . q_channel) + bias,    q = round(x / s),  s = max |x| / 127

Where a few channels are far larger than all others, as behind the Mix-FFN's gate, one step is too
coarse for the rest: such tokens are the sum of two 8-bit numbers, the second of 1/254 of a step.

A CPU multiplies unsigned activations (oneDNN, zero point 128): signed ones, and weights that are
not [O, C], meet reference kernels that are hundreds of times slower. CUDA multiplies signed ones,
in `multiply`: the same whole numbers, from as few kernels as torch needs.

C channels in, O out; tokens are [..., C].
"""

from collections.abc import Callable, MutableMapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from opensana.layers.weight_only import (
    LEAST_SCALE,
    LEVELS,
    WeightOnlyLinear,
    WeightOnlyPointwise,
    check_no_gradient,
)

ZERO = 128
FINER = 2 * LEVELS
CUDA_ROWS = 32
"""torch._int_mm takes more than 16 rows."""
PRODUCTS_AT_ONCE = 2**25
"""So many sums are kept in 32 bits before they are scaled."""


class Rows(NamedTuple):
    """Tokens [..., C] as scale * values, or as scale * (values[0] + values[1] / FINER)."""

    values: Tensor  # [..., C] or [2, ..., C]: uint8 with zero point 128, or int8 of `signed`
    scale: Tensor  # [..., 1], float32


def quantised(x: Tensor, *, twice: bool = False) -> Rows:
    """Each token of [..., C] with a scale of its own, as one or two 8-bit numbers."""
    peak = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True)).float()
    scale = (peak / LEVELS).clamp_min_(LEAST_SCALE)
    steps = x * scale.reciprocal()
    if twice:
        whole = steps.round()
        steps = torch.stack([whole, steps.sub_(whole).mul_(FINER)])
    # What is positive is rounded by cutting its fraction off.
    return Rows(steps.add_(ZERO + 0.5).to(torch.uint8), scale)


def signed(x: Tensor, *, twice: bool = False) -> Rows:
    """As `quantised`, in int8: on a GPU each operation is a kernel, and here are fewer."""
    peak = torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True, dtype=torch.float32)
    scale = peak.div_(LEVELS).clamp_min_(LEAST_SCALE)
    steps = x.div(scale)
    if not twice:
        whole = steps.round_().to(torch.int8, memory_format=torch.contiguous_format)
        return Rows(whole, scale)
    values = steps.new_empty(2, *steps.shape, dtype=torch.int8)
    whole = steps.round()
    values[0].copy_(whole)
    values[1].copy_(steps.sub_(whole).mul_(FINER).round_())
    return Rows(values, scale)


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
        """s_channel (q_token . q_channel), [..., O]: without the token's scale and the bias.

        Of rows on a CPU.
        """
        values, scale = rows.values, self.weight_scale[:, 0]
        packed = self._pack() if self.packed is None else self.packed
        made = torch.ops.onednn.qlinear_pointwise(
            *(values, 1.0, ZERO, packed, scale, self.zeros),
            *(None, 1.0, 0, dtype, "none", [], ""),
        )
        twice = values.ndim > rows.scale.ndim
        return made[0].add_(made[1], alpha=1 / FINER) if twice else made

    def of_tokens(self, x: Tensor) -> Tensor:
        check_no_gradient(x)
        if x.device.type != "cpu":
            return multiply(x, self.weight, self.weight_scale, self.bias, twice=self.twice)
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


def multiply(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    twice: bool = False,
) -> Tensor:
    """Tokens [..., C] times a weight [O, C] in int8 with scales [O, 1]: [..., O], as x is."""
    tokens = x.reshape(-1, x.shape[-1])
    out = tokens.new_empty(len(tokens), len(weight))
    at_once = max(CUDA_ROWS, PRODUCTS_AT_ONCE // len(weight))
    for part, made in zip(tokens.split(at_once), out.split(at_once), strict=True):
        values, scale = signed(part, twice=twice)
        whole = int_mm(values.flatten(0, -2), weight.t())
        product = (whole * weight_scale[:, 0]).view(*values.shape[:-1], -1)
        if twice:
            product = product[0].add_(product[1], alpha=1 / FINER)
        if bias is None:
            torch.mul(product, scale, out=made)
        else:
            torch.addcmul(bias, product, scale, out=made)
    return out.view(*x.shape[:-1], -1)


def int_mm(values: Tensor, weight: Tensor) -> Tensor:
    """int8 [M, C] times int8 [C, O] to int32 [M, O]; on CUDA C and O are multiples of 8."""
    if missing := max(0, CUDA_ROWS - len(values)):
        return int_mm(F.pad(values, (0, 0, 0, missing)), weight)[:-missing]
    return torch._int_mm(values, weight)  # pyright: ignore[reportPrivateImportUsage]

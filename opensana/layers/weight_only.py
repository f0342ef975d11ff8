"""Layers whose weights stay 8-bit numbers and are widened in blocks of rows, where they are used.

    W[o, c] = scale[o, g] q[o, c] - minimum[o, g],    c in the g-th of G groups of channels

One group a row is the usual 8-bit form; the blocks of GGUF are groups of 16 or 32 channels, some
with a minimum, and lose nothing. Only the weights are quantised: activations keep all their digits.

On a CPU and for few tokens a product takes about 1.3 times that of a plain float32 layer, for many
no more than it. `torch._weight_int8pack_mm` is 40 to 150 times slower than that in float32: it has
a fast kernel for bfloat16 alone. oneDNN's product of 8-bit tokens and weights takes a half to a
ninth, with an error of 0.8 % a layer: that is another scheme.

C channels in, O out.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Self, cast

import torch
from torch import Tensor, nn

from opensana.errors import WeightsError

LEVELS = 127
LEAST_SCALE = 1e-30
WIDENED_NUMBERS = 2**18
"""A block of so many float32 numbers stays in a core's second cache until it is multiplied."""
WIDENED_ELSEWHERE = 2**24
"""... on a GPU, where each block is some launches: 64 MiB."""


def quantised_rows(weight: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """int8 [O, C] and its scales [O, G] in float32, symmetric, of a matrix [O, C].

    `group` is how many channels share a scale; None is all of a row.
    """
    groups = weight.float().unflatten(1, (-1, group or weight.shape[1]))
    scale = (groups.abs().amax(2) / LEVELS).clamp_min_(LEAST_SCALE)
    return (groups / scale[..., None]).round_().to(torch.int8).flatten(1), scale


class WeightOnly(nn.Module):
    """A matrix [O, C] in 8 bits; its scales stay in float32 whatever a module is brought to."""

    weight: Tensor
    weight_scale: Tensor
    weight_minimum: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, minimum: Tensor | None = None) -> None:
        """int8 [O, C], and scale and minimum [O, G] in float32."""
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_minimum", minimum)

    def widened(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows [..., C] of the matrix that this stands for."""
        scale = self.weight_scale[rows][..., None]
        wide = self.weight[rows].float().unflatten(-1, (scale.shape[-2], -1)).mul_(scale)
        if self.weight_minimum is not None:
            wide.sub_(self.weight_minimum[rows][..., None])
        return wide.flatten(-2).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.weight_scale, self.weight_minimum
        super()._apply(fn, recurse)
        for name, old in zip(("weight_scale", "weight_minimum"), kept, strict=True):
            if old is not None:
                new: Tensor = getattr(self, name)
                setattr(self, name, new if new.dtype == old.dtype else old.to(new.device))
        return self


class WeightOnlyLinear(WeightOnly):
    """A linear layer [..., C] to [..., O] for inference."""

    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        minimum: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(weight, scale, minimum)
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, plain: nn.Linear | nn.Conv2d, group: int | None = None) -> Self:
        """Quantise a linear layer, or a 1x1 convolution for `WeightOnlyPointwise`."""
        bias = None if plain.bias is None else plain.bias.detach()
        return cls(*quantised_rows(plain.weight.detach().flatten(1), group), None, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.of_tokens(x)

    def of_tokens(self, x: Tensor) -> Tensor:
        """Tokens [..., C] to [..., O], also for a layer of maps."""
        check_no_gradient(x)
        tokens = x.reshape(-1, self.in_features)
        out = x.new_empty(len(tokens), self.out_features)
        most = WIDENED_NUMBERS if x.device.type == "cpu" else WIDENED_ELSEWHERE
        many = max(1, most // self.in_features)
        for first in range(0, self.out_features, many):
            rows = slice(first, first + many)
            torch.mm(tokens, self.widened(rows, x.dtype).t(), out=out[:, rows])
        if self.bias is not None:
            out.add_(self.bias)
        return out.view(*x.shape[:-1], self.out_features)


class WeightOnlyPointwise(WeightOnlyLinear):
    """A 1x1 convolution [B, C, H, W] to [B, O, H, W]; no copy where channels lie last."""

    def forward(self, x: Tensor) -> Tensor:
        return self.of_tokens(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def check_no_gradient(x: Tensor) -> None:
    """RuntimeError where a gradient is wanted."""
    if x.requires_grad:
        raise RuntimeError("a quantised layer has no gradient; train the plain model")


class WeightOnlyEmbedding(WeightOnly):
    """A table of vectors [O, C]: those that are looked up are widened, in float32 or `dtype`."""

    dtype = torch.float32

    @classmethod
    def of(cls, plain: nn.Embedding, group: int | None = None) -> Self:
        """Quantise an embedding."""
        return cls(*quantised_rows(plain.weight.detach(), group))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.widened(tokens, self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The format that a module is brought to is that of the vectors."""
        self.dtype = fn(self.weight_scale[:0].to(self.dtype)).dtype
        return super()._apply(fn, recurse)


def plain_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, widened to float32 if it is kept in fewer bits."""
    wide = isinstance(layer, WeightOnly)
    return layer.widened(slice(None), torch.float32) if wide else cast(Tensor, layer.weight)


def keep_in_8_bits(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Bring layers into the form in which a state holds them; the module is on `meta`.

    A linear layer or an embedding whose name has a `weight_scale` there is one of the above.
    """
    for name, plain in list(module.named_modules()):
        if (scale := state.get(f"{name}.weight_scale")) is None:
            continue
        minimum = state.get(f"{name}.weight_minimum")
        kind = WeightOnlyEmbedding if isinstance(plain, nn.Embedding) else WeightOnlyLinear
        # torch.empty alone: other operations on `meta` import torch's compiler.
        weight = torch.empty(cast(Tensor, plain.weight).shape, dtype=torch.int8, device="meta")
        if len(weight) != len(scale) or weight.shape[1] % scale.shape[-1]:
            raise WeightsError(f"{name}.weight_scale has the shape {tuple(scale.shape)}")
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, kind(weight, scale, minimum))


class PlainState(Mapping[str, Tensor]):
    """The state dict that the plain module would have: a matrix is widened when it is looked up."""

    def __init__(self, module: nn.Module) -> None:
        self.dtype = next(module.parameters()).dtype
        self.layers = {
            f"{name}.weight": layer
            for name, layer in module.named_modules()
            if isinstance(layer, WeightOnly)
        }
        scales = {f"{name}_{part}" for name in self.layers for part in ("scale", "minimum")}
        self.state = {k: v for k, v in module.state_dict().items() if k not in scales}

    def __getitem__(self, name: str) -> Tensor:
        layer = self.layers.get(name)
        return self.state[name] if layer is None else layer.widened(slice(None), self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)

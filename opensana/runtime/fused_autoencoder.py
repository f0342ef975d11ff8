"""An autoencoder in fewer kernels and passes, for inference on CUDA.

A GPU's convolutions read maps in channels last, so all maps and weights are in it: none is
reordered, and a map is the tokens of its positions. On tokens one kernel is the norm, 1x1
convolutions are products with their bias inside, and queries, keys and values are one product. All
scales of attention are written side by side, in float32 by head. What changes the resolution is in
`fused_resample.py`. All numbers are the plain module's up to rounding. `fuse_autoencoder` is
applied from outside; the state-dict keys do not change.

Shapes: B batch, C channels, H W size, N = H * W positions, D channels a head.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.autoencoder.blocks import MultiscaleLinearAttention, MultiscaleProjection
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.resample import Downsample, Upsample
from opensana.layers import MixFFN, RMSNorm2d, add_normed
from opensana.runtime.fused_resample import (
    FusedDownsample,
    FusedUpsample,
    as_map,
    as_tokens,
    can_fuse,
)

EPS = 1e-15
PADDING = 4
"""Columns of ones behind a head's values, which sum the keys; as many as keep rows aligned."""


def fuse_autoencoder(autoencoder: Autoencoder) -> None:
    """Replace the parts that have a fused form, in place; all weights become channels last."""
    for name in ("encoder", "decoder"):
        network = getattr(autoencoder, name)
        network.to(memory_format=torch.channels_last)
        if type(network.conv_in) is nn.Conv2d:
            network.conv_in = FirstConv(network.conv_in)
        _replace(network)


def is_fused(autoencoder: Autoencoder) -> bool:
    """Whether parts of the decoder are."""
    return isinstance(autoencoder.decoder.norm_out, FusedNorm)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        kind = type(child)
        if kind is RMSNorm2d:
            setattr(module, name, FusedNorm(cast(RMSNorm2d, child)))
        elif kind is Upsample and can_fuse(cast(Upsample, child)):
            setattr(module, name, FusedUpsample(cast(Upsample, child)))
        elif kind is Downsample:
            setattr(module, name, FusedDownsample(cast(Downsample, child)))
        elif isinstance(child, nn.SiLU | nn.ReLU):
            child.inplace = True  # what it reads is read by nothing else
        else:
            _replace(child)
            if kind is MultiscaleLinearAttention:
                setattr(module, name, FusedAttention(cast(MultiscaleLinearAttention, child)))
            elif kind is MixFFN:
                setattr(module, name, FusedMixFFN(cast(MixFFN, child)))


def product(tokens: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Of tokens [B, H, W, C] and a weight [O, C, ...]: [B, H, W, O]. One of two dimensions."""
    rows = F.linear(tokens.flatten(0, 2), weight.flatten(1), bias)
    return rows.view(*tokens.shape[:3], -1)


class FirstConv(nn.Conv2d):
    """The convolution that a network begins with, whose input may be in any order."""

    def __init__(self, plain: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(plain.__dict__)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] to [B, O, H, W], channels last."""
        return super().forward(input.contiguous(memory_format=torch.channels_last))


class FusedNorm(RMSNorm2d):
    """As `RMSNorm2d`, in two kernels instead of eight."""

    def __init__(self, plain: RMSNorm2d) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.eps = plain.weight, plain.bias, plain.eps

    def forward(self, x: Tensor) -> Tensor:
        # In four dimensions torch takes tokens of one position or channel for a map in channels
        # last, and leaves its own kernel.
        tokens = as_tokens(x)
        rows = F.rms_norm(tokens.flatten(0, 2), self.weight.shape, self.weight, self.eps)
        return as_map(rows.add_(self.bias).view(tokens.shape))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return self(branch).add_(x)


class FusedAttention(MultiscaleLinearAttention):
    """As `MultiscaleLinearAttention`; [B, C, H, W] in and out."""

    qkv_weight: Tensor
    """[3 * heads * D, C]."""
    least: Tensor
    """[3]: ReLU for queries and keys, nothing for values."""

    def __init__(self, plain: MultiscaleLinearAttention) -> None:
        nn.Module.__init__(self)
        self.head = plain.head
        self.to_qkv_multiscale = plain.to_qkv_multiscale
        self.to_out, self.norm_out = plain.to_out, plain.norm_out
        weights = [layer.weight.detach() for layer in (plain.to_q, plain.to_k, plain.to_v)]
        self.register_buffer("qkv_weight", torch.cat(weights), persistent=False)
        least = torch.zeros(3, device=weights[0].device)
        least[2] = -torch.inf
        self.register_buffer("least", least, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        both = self._sums(x)
        weights = both[..., self.head : self.head + 1].add_(EPS)
        batch, heads, count, _ = both.shape
        out = x.new_empty(batch, count, heads, self.head).transpose(1, 2)
        return self.merge(x, torch.div(both[..., : self.head], weights, out=out))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all scales, [B, heads, N, D] each."""
        parts = [part.flatten(-2) for part in self._scales(x)]
        query, key, value = torch.cat(parts, dim=2).transpose(1, 2).chunk(3, dim=-1)
        return query, key, value

    def merge(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [B, C, H, W] plus the normed projection of the attention's output [B, heads, N, D]."""
        tokens = attended.transpose(1, 2).flatten(2).unflatten(1, x.shape[2:])
        return add_normed(x, as_map(product(tokens, self.to_out.weight)), self.norm_out)

    def _scales(self, x: Tensor) -> Iterator[Tensor]:
        """Of each scale [B, N, heads, 3, D]: what stands for queries, keys and values."""
        tokens = product(as_tokens(x), self.qkv_weight)
        yield self._by_head(tokens)
        for scale in self.to_qkv_multiscale:
            yield self._by_head(_projected(cast(MultiscaleProjection, scale), as_map(tokens)))

    def _by_head(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(1, 2).unflatten(-1, (-1, 3, self.head))

    def _sums(self, x: Tensor) -> Tensor:
        """f(Q) S and f(Q) z of all scales in float32, [B, heads, N, D + padding]."""
        query, key, value = self._wide(x)
        return query @ (key.mT @ value)

    def _wide(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All scales in float32, behind ReLU: [B, heads, N, D], the values with ones behind."""
        parts = list(self._scales(x))
        batch, count, heads = parts[0].shape[:3]
        shape = (3, batch, heads * len(parts), count, self.head + PADDING)
        wide = x.new_empty(shape, dtype=torch.float32)
        own, least = wide[..., : self.head], self.least.view(3, 1, 1, 1, 1)
        wide[2, ..., self.head :].fill_(1)
        for part, out in zip(parts, own.split(heads, dim=2), strict=True):
            torch.maximum(part.permute(3, 0, 2, 1, 4), least, out=out)
        return own[0], own[1], wide[2]

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for part, kept in zip("qkv", self.qkv_weight.chunk(3), strict=True):
            destination[f"{prefix}to_{part}.weight"] = kept
        super()._save_to_state_dict(destination, prefix, keep_vars)


def _projected(scale: MultiscaleProjection, x: Tensor) -> Tensor:
    """As the module, [B, C, H, W] to [B, H, W, C]: its grouped convolution is one batched product.

    The product is written where the groups stand side by side.
    """
    groups, width = scale.proj_out.groups, scale.proj_out.weight.shape[1]
    tokens = as_tokens(scale.proj_in(x))
    by_group = tokens.flatten(0, 2).unflatten(-1, (groups, width)).transpose(0, 1)
    out = tokens.new_empty(tokens.shape)
    torch.bmm(
        by_group,
        scale.proj_out.weight.view(groups, -1, width).mT,
        out=out.flatten(0, 2).unflatten(-1, (groups, width)).transpose(0, 1),
    )
    return out


class FusedMixFFN(MixFFN):
    """As `MixFFN` with norm and residual; [B, C, H, W] in and out."""

    def __init__(self, plain: MixFFN) -> None:
        nn.Module.__init__(self)
        self.conv_inverted, self.conv_depth = plain.conv_inverted, plain.conv_depth
        self.conv_point, self.activation = plain.conv_point, plain.activation
        self.middle, self.norm, self.residual = plain.middle, plain.norm, plain.residual

    def forward(self, x: Tensor) -> Tensor:
        assert self.norm is not None and self.residual, "this is the autoencoder's"
        wide, narrow = self.conv_inverted, self.conv_point
        # No wide map has a name here: it would live on beside the next.
        inner = self.middle(
            self.conv_depth,
            as_map(self.activation(product(as_tokens(x), wide.weight, wide.bias))),
        )
        return self.norm.add(x, as_map(product(as_tokens(inner), narrow.weight)))

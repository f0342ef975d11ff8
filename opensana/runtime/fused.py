"""Blocks of the Linear DiT in fewer kernels, for inference on an accelerator.

Each operation of torch is one launch there, and what it writes is read again by the next. Here the
shift and scale of adaLN are the weights of the norm, one product makes queries, keys and values,
one pass makes them float32 by head, S and z are one product, 1x1 convolutions are products of
tokens, cross-attention adds to its input in place, and a norm of queries or keys is one kernel. All
numbers are the plain block's up to rounding; products may be those of 8-bit numbers. `fuse` is
applied from outside; the state-dict keys do not change.

Shapes: B batch, N image tokens, M text tokens, C channels, D channels a head, T timesteps.
"""

from collections.abc import Callable, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.norm import RMSNorm
from opensana.layers.weight_only import WeightOnlyLinear
from opensana.runtime import float8, int8
from opensana.runtime.float8 import Float8Linear, Float8Pointwise
from opensana.runtime.int8 import Int8Linear, Int8Pointwise
from opensana.transformer.attention import (
    FLOAT16_LIMIT,
    BlockText,
    CrossAttention,
    FoldedText,
    KeysValues,
    SelfAttention,
    SeveralTexts,
    join_heads,
)
from opensana.transformer.block import Block, add_product
from opensana.transformer.model import Stack

EPS = 1e-15
PADDING = 4
"""Columns behind a head's D: one of ones, and as many as keep rows of floats aligned."""
OUTPUTS = 16
"""What an 8-bit product's outputs are a multiple of."""
ALL = slice(0, 3)
LINEAR = (nn.Linear, Int8Linear, Float8Linear)
POINTWISE = (nn.Conv2d, Int8Pointwise, Float8Pointwise)


def fuse(stack: Stack) -> None:
    """Replace the blocks, in place; those with layers in w8 or w4 stay."""
    for index, block in enumerate(stack.blocks):
        if can_fuse(block):
            stack.transformer_blocks[index] = FusedBlock(block)


def is_fused(stack: Stack) -> bool:
    """Whether any of the blocks is."""
    return any(isinstance(block, FusedBlock) for block in stack.transformer_blocks)


def can_fuse(block: Block) -> bool:
    """Whether it has all its products in a form that is known here."""
    one, two = block.attn1, block.attn2
    layers = (one.to_q, one.to_k, one.to_v, one.to_out[0], two.to_q, two.to_out[0])
    convolutions = (block.ff.conv_inverted, block.ff.conv_point)
    return all(type(layer) in LINEAR for layer in layers) and all(
        type(layer) in POINTWISE for layer in convolutions
    )


class RowNorm(RMSNorm):
    """As `RMSNorm`, in one kernel: tokens [B, N, C] in and out."""

    def __init__(self, plain: RMSNorm) -> None:
        nn.Module.__init__(self)
        self.weight, self.eps = plain.weight, plain.eps

    def forward(self, x: Tensor) -> Tensor:
        rows = F.rms_norm(x.flatten(0, 1), self.weight.shape, self.weight, self.eps)
        return rows.view(x.shape)


class FusedSelfAttention(nn.Module):
    """ReLU linear attention of tokens [B, N, C], as `SelfAttention`."""

    qkv_weight: Tensor
    """[3 * heads * (D + padding), C]; the rows of the padding are 0."""
    qkv_bias: Tensor
    core: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    """Of queries, keys and values [B, heads, N, D], in place of the plain form here."""
    least: Tensor
    """[3, 1, 1, 1, D + padding]: ReLU for queries and keys, and the ones that sum the keys."""
    norms: Tensor | None
    """[2, 1, heads, 1, D + padding]: weights of the norms of queries and keys, float32."""

    def __init__(self, plain: SelfAttention) -> None:
        super().__init__()
        self.heads, self.bias = plain.heads, plain.to_q.bias is not None
        self.to_out = plain.to_out
        self.multiply = multiplier(plain.to_q)
        layers = [layer.state_dict() for layer in (plain.to_q, plain.to_k, plain.to_v)]
        self.names = tuple(layers[0])
        self.width = len(layers[0]["weight"]) // self.heads
        self.outputs = 3 * self.heads * (self.width + PADDING)
        missing = -self.outputs % OUTPUTS if type(plain.to_q) is not nn.Linear else 0
        for name in self.names:
            rows = torch.stack([layer[name] for layer in layers]).unflatten(1, (self.heads, -1))
            padded = rows.new_zeros(self.outputs + missing, *rows.shape[3:])
            by_head = padded[: self.outputs].unflatten(0, (3, self.heads, -1))
            by_head[:, :, :-PADDING] = rows
            self.register_buffer(f"qkv_{name}", padded, persistent=False)
        least = torch.zeros(3, 1, 1, 1, self.width + PADDING, device=plain.to_q.weight.device)
        least[2, ..., : self.width] = -torch.inf
        least[2, ..., self.width] = 1
        self.register_buffer("least", least, persistent=False)
        self.norm_q, self.norm_k = plain.norm_q, plain.norm_k
        norms = None
        if isinstance(plain.norm_q, RMSNorm) and isinstance(plain.norm_k, RMSNorm):
            both = torch.stack([plain.norm_q.weight, plain.norm_k.weight]).detach().float()
            norms = least.new_zeros(2, 1, self.heads, 1, self.width + PADDING)
            # The padding counts in the mean of squares, which `_normed` takes.
            share = self.width / (self.width + PADDING)
            norms[..., :-PADDING] = share**0.5 * both.view(2, 1, self.heads, 1, self.width)
            self.eps = share * plain.norm_q.eps
        self.register_buffer("norms", norms, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        core = self.core
        if core is None:
            out = self._attend(self._wide(tokens), tokens.dtype)
        elif self.norms is None:
            out = core(*self._product(tokens)[..., : self.width])
        else:
            both, values = self._normed(tokens)
            heads = *(both * self.norms).to(values.dtype), *values
            out = core(*(part[..., : self.width] for part in heads))
        out = self.to_out[0](join_heads(out))
        return out.clamp_(-FLOAT16_LIMIT, FLOAT16_LIMIT) if out.dtype == torch.float16 else out

    def _wide(self, tokens: Tensor) -> Tensor:
        """Queries and keys after ReLU, and values, float32, [3, B, heads, N, D + padding]."""
        if self.norms is None:
            qkv = self._product(tokens)
            wide = qkv.new_empty(qkv.shape, dtype=torch.float32)
            return torch.maximum(qkv, self.least, out=wide)
        both, values = self._normed(tokens)
        wide = both.new_empty((3, *both.shape[1:]), dtype=torch.float32)
        torch.mul(both, self.norms, out=wide[:2]).relu_()
        torch.maximum(values, self.least[2:], out=wide[2:])
        return wide

    def _product(self, tokens: Tensor, parts: slice = ALL) -> Tensor:
        """Some of queries, keys and values, [1 to 3, B, heads, N, D + padding]."""
        rows = self.outputs // 3
        chosen = slice(parts.start * rows, parts.stop * rows) if parts is not ALL else slice(None)
        given = {name: getattr(self, f"qkv_{name}")[chosen] for name in self.names}
        made = self.multiply(tokens, **given)[..., : self.outputs]  # rows may be filled up
        return made.unflatten(-1, (-1, self.heads, self.width + PADDING)).permute(2, 0, 3, 1, 4)

    def _normed(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys, each divided by its root mean square, without weight; and values."""
        if self.multiply is linear:  # two products, so that what is normed lies together
            both, values = (self._product(tokens, part) for part in (slice(0, 2), slice(2, 3)))
        else:
            both, values = self._product(tokens).split([2, 1])
        both = both.permute(1, 3, 0, 2, 4)
        rows = both.flatten(3).flatten(0, 2)
        rows = F.rms_norm(rows, rows.shape[1:], eps=self.eps)
        return rows.view(both.shape).permute(2, 0, 3, 1, 4), values

    def _attend(self, wide: Tensor, dtype: torch.dtype) -> Tensor:
        """Attend by queries, keys and values [3, B, heads, N, D + padding]: [B, heads, N, D]."""
        query, key, value = wide
        both = query @ (key.mT @ value)
        weights = both[..., self.width : self.width + 1].add_(EPS)
        batch, heads, count, _ = both.shape
        out = wide.new_empty(batch, count, heads, self.width, dtype=dtype).transpose(1, 2)
        return torch.div(both[..., : self.width], weights, out=out)

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name in self.names:
            held: Tensor = getattr(self, f"qkv_{name}")[: self.outputs]
            rows = held.unflatten(0, (3, self.heads, -1))
            for part, kept in zip("qkv", rows[:, :, :-PADDING].flatten(1, 2), strict=True):
                destination[f"{prefix}to_{part}.{name}"] = kept
        super()._save_to_state_dict(destination, prefix, keep_vars)


class FusedBlock(nn.Module):
    """As `Block`, for inference: its `modulation` is what `settle` made."""

    def __init__(self, plain: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = plain.norm1, plain.norm2
        self.attn1 = FusedSelfAttention(plain.attn1)
        self.attn2: CrossAttention = plain.attn2
        if isinstance(self.attn2.norm_q, RMSNorm):
            self.attn2.norm_q = RowNorm(self.attn2.norm_q)
        self.ff = plain.ff
        self.scale_shift_table = plain.scale_shift_table

    def settle(self, modulation: Tensor) -> Tensor:
        """Shift, 1 + scale, gate of attention and of Mix-FFN, [T, 6, C] from [T, 6, C]."""
        table = self.scale_shift_table + modulation
        table[:, 1::3] += 1
        return table

    def fold(self, text: KeysValues) -> KeysValues | FoldedText:
        """As `CrossAttention.fold`, with the output's bias in the values: weights sum to 1."""
        folded = self.attn2.fold(text, half=True)
        if isinstance(folded, KeysValues):
            return folded
        share = self.attn2.output.bias / self.attn2.heads
        return folded._replace(values=folded.values + share)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: BlockText,
        mask: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """Tokens [B, N, C] in and out; `modulation` [B or 1, 6, C]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=1)
        attended = self.attn1(modulated(tokens, self.norm1, shift_a, scale_a))
        tokens = add_product(tokens, gate_a, attended)
        self._attend(tokens, text, mask)
        mixed = self._mix(modulated(tokens, self.norm2, shift_m, scale_m), grid)
        return add_product(tokens, gate_m, mixed)

    def _attend(self, tokens: Tensor, text: BlockText, mask: Tensor | None) -> None:
        """Add cross-attention to the tokens, in place."""
        if isinstance(text, SeveralTexts):
            parts = zip(tokens.split(text.rows), text.texts, text.masks, strict=True)
            for part, one, allowed in parts:
                self._attend(part, one, allowed)
        elif isinstance(text, FoldedText):
            add_folded(tokens, text, mask, self.attn2.heads)
        else:
            tokens += self.attn2(tokens, text, mask)

    def _mix(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        # No wide map has a name here: it would live on beside the next.
        narrow = self.ff.middle(self.ff.conv_depth, self._wide(tokens, grid))
        return multiplied(self.ff.conv_point, narrow.permute(0, 2, 3, 1).flatten(1, 2))

    def _wide(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        wide = F.silu(multiplied(self.ff.conv_inverted, tokens), inplace=True)
        return wide.unflatten(1, grid).permute(0, 3, 1, 2)


def multiplied(layer: nn.Module, tokens: Tensor) -> Tensor:
    """Tokens [B, N, C] times the weight of a linear layer or of a 1x1 convolution."""
    if isinstance(layer, WeightOnlyLinear):
        return layer.of_tokens(tokens)
    plain = cast(nn.Linear | nn.Conv2d, layer)
    return F.linear(tokens, plain.weight.flatten(1), plain.bias)


def multiplier(layer: nn.Module) -> Callable[..., Tensor]:
    """What a layer does with tokens and tensors by the names that it has for them."""
    kinds = {Int8Linear: int8.multiply, Float8Linear: float8.multiply}
    return kinds.get(type(layer), linear)  # pyright: ignore[reportArgumentType,reportCallIssue]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, whose parameters have other names."""
    return F.linear(x, weight, bias)


def modulated(tokens: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> Tensor:
    """norm(tokens) * scale + shift, with shift and scale [B or 1, 1, C]."""
    if len(scale) == 1 and norm.weight is None:
        return F.layer_norm(
            tokens, norm.normalized_shape, scale.flatten(), shift.flatten(), norm.eps
        )
    return add_product(shift, norm(tokens), scale)


def add_folded(tokens: Tensor, text: FoldedText, mask: Tensor | None, heads: int) -> None:
    """Add attention to a folded text to tokens [B, N, C], in place; the text may serve all of B."""
    keys, bias, values = text
    if len(keys) == 1:
        scores = F.linear(tokens, keys[0].T, bias.flatten())
    else:
        scores = torch.baddbmm(bias, tokens, keys)
    scores = scores.unflatten(-1, (heads, -1))
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    weights = scores.softmax(-1).flatten(2)
    if len(values) == 1:
        tokens.flatten(0, 1).addmm_(weights.flatten(0, 1), values[0])
    else:
        tokens.baddbmm_(weights, values)

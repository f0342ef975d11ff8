"""A Linear DiT block in W8A8: each quantisation is part of the operation before (paper, section 4).

    norm, modulate -> rows -> q, k, v         one quantisation serves three products
    linear attention -> rows -> output
    SiLU, depthwise, gate -> rows -> conv_point

What joins two products is an `Operations`: `PlainOperations` here, and the same in C++.

B batch, N = H * W tokens, C channels, K channels inside the Mix-FFN.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.mix_ffn import gated
from opensana.runtime.int8 import Int8Linear, Rows, quantised, scaled
from opensana.transformer.attention import BlockText, join_heads, split_heads
from opensana.transformer.block import Block, add_product, modulate


class Operations(Protocol):
    """From the float32 numbers of one product to the 8-bit rows of the next.

    A product comes as `Int8Linear.product` gives it, its tokens' scales [B, N, 1] beside it.
    """

    product_dtype: torch.dtype
    """In which products are wanted."""

    def quantised(self, x: Tensor, *, twice: bool = False) -> Rows:
        """As `int8.quantised`."""
        ...

    def modulated(self, tokens: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> Rows:
        """norm(tokens) * (1 + scale) + shift, of tokens [B, N, C] and scale, shift [B, 1, C]."""
        ...

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor,
        norms: tuple[nn.Module, nn.Module],
        heads: int,
    ) -> Rows:
        """ReLU linear attention of three products [B, N, C], whose queries and keys are normed."""
        ...

    def mixed(
        self,
        product: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        depthwise: nn.Conv2d,
        grid: tuple[int, int],
    ) -> Rows:
        """The Mix-FFN's middle, [B, N, 2K] to [2, B, N, K]: SiLU, depthwise convolution, gate."""
        ...

    def added(
        self, tokens: Tensor, product: Tensor, scale: Tensor, bias: Tensor | None, gate: Tensor
    ) -> Tensor:
        """tokens + gate * (scale * product + bias), gate [B, 1, C]."""
        ...


class PlainOperations:
    """`Operations` in plain torch."""

    product_dtype = torch.float32
    quantised = staticmethod(quantised)

    def __init__(self) -> None:
        native = torch.cpu._is_avx512_bf16_supported()
        self.inner_dtype = torch.bfloat16 if native else torch.float32

    def modulated(self, tokens: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> Rows:
        return quantised(modulate(norm(tokens), shift, scale))

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor,
        norms: tuple[nn.Module, nn.Module],
        heads: int,
    ) -> Rows:
        q, k, v = (scaled(x, scale, None) for x in (q, k, v))
        normed = (norms[0](q), norms[1](k), v)
        out = relu_linear_attention(*(split_heads(x, heads) for x in normed))
        return quantised(join_heads(out))

    def mixed(
        self,
        product: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        depthwise: nn.Conv2d,
        grid: tuple[int, int],
    ) -> Rows:
        inner = F.silu(scaled(product, scale, bias).to(self.inner_dtype), inplace=True)
        weight, shift = (x.to(self.inner_dtype) for x in depthwise.parameters())
        # Channels last, as conv2d sees by the strides: transposed tokens of one picture hide it.
        inner = inner.unflatten(1, grid).permute(0, 3, 1, 2)
        out = gated(F.conv2d(inner, weight, shift, padding=1, groups=len(weight)))
        return quantised(out.permute(0, 2, 3, 1).flatten(1, 2).float(), twice=True)

    def added(
        self, tokens: Tensor, product: Tensor, scale: Tensor, bias: Tensor | None, gate: Tensor
    ) -> Tensor:
        return add_product(tokens, gate, scaled(product, scale, bias).to(tokens.dtype))


def folding() -> tuple[torch.dtype, int]:
    """In what a short text is folded, and what its products cost beside those in 8 bits."""
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, 1
    return torch.float32, 5


class Int8Block(Block):
    """A block with quantised layers, under the names of the plain one whose parts it takes over."""

    def __init__(self, plain: Block, operations: Operations) -> None:
        nn.Module.__init__(self)
        for name, child in plain.named_children():
            self.add_module(name, child)
        self.scale_shift_table = plain.scale_shift_table
        self.operations = operations
        for layer in (self.attn2.to_q, self.attn2.output):
            cast(Int8Linear, layer).quantise = operations.quantised
        self.attn2.fold_dtype, self.attn2.fold_cost = folding()

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: BlockText,
        mask: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """As `Block.forward`."""
        table = self.scale_shift_table + modulation
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.chunk(6, dim=1)
        do, attn, out = self.operations, self.attn1, cast(nn.Linear, self.attn1.to_out[0])
        wide, depthwise, point = self.ff.conv_inverted, self.ff.conv_depth, self.ff.conv_point

        rows = do.modulated(tokens, self.norm1, shift_a, scale_a)
        q, k, v = (self._product(layer, rows) for layer in (attn.to_q, attn.to_k, attn.to_v))
        rows = do.attended(q, k, v, rows.scale, (attn.norm_q, attn.norm_k), attn.heads)
        tokens = do.added(tokens, self._product(out, rows), rows.scale, out.bias, gate_a)

        tokens = tokens + self.attn2(tokens, text, mask)

        rows = do.modulated(tokens, self.norm2, shift_m, scale_m)
        rows = do.mixed(self._product(wide, rows), rows.scale, wide.bias, depthwise, grid)
        return do.added(tokens, self._product(point, rows), rows.scale, None, gate_m)

    def _product(self, layer: nn.Module, rows: Rows) -> Tensor:
        return cast(Int8Linear, layer).product(rows, self.operations.product_dtype)

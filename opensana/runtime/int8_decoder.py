"""An autoencoder's decoder in 8 bits: three quarters of a few-step picture are its arithmetic.

ResBlocks multiply maps of 8 bits (`int8_convolution.py`), attention's projections and the Mix-FFN
tokens of 8 bits (`int8.py`). All else stays in float32: first and last layers, norms, the core of
linear attention, blocks too narrow to gain, and the convolutions that double the resolution, whose
few large weights and activations would cost six decibels: they are in bfloat16 where a processor
multiplies tiles of it (AMX). Names of modules are the plain model's.

B batch, C channels, H W size.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.autoencoder.blocks import EfficientViTBlock, ResBlock
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.resample import Upsample
from opensana.layers.convolution import Conv3x3
from opensana.layers.mix_ffn import MixFFN
from opensana.runtime.int8 import Int8Linear, Int8Pointwise, scaled
from opensana.runtime.int8_block import Operations, PlainOperations
from opensana.runtime.int8_convolution import CompiledMapOperations, Int8Conv3x3, MapOperations
from opensana.runtime.int8_kernels import CompiledOperations
from opensana.runtime.kernels import compile_convolutions
from opensana.runtime.quantize import seconds

NARROW = 64
"""Channels below which a ResBlock takes as long in 8 bits as in float32."""
CHECKED_CHANNELS, CHECKED_SIDE = 128, 64
THEN = {nn.SiLU: "swish", nn.ReLU: "relu"}
"""oneDNN's names of what may follow a convolution."""
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")


class Int8ResBlock(ResBlock):
    """A ResBlock with quantised convolutions, the first of which applies the activation."""

    def __init__(self, plain: ResBlock, operations: MapOperations) -> None:
        nn.Module.__init__(self)
        then = THEN[type(plain.activation)]
        self.conv1 = Int8Conv3x3(plain.conv1, operations, then=then)  # pyright: ignore
        self.conv2 = Int8Conv3x3(plain.conv2, operations)  # pyright: ignore
        self.norm, self.operations = plain.norm, operations

    def forward(self, x: Tensor) -> Tensor:
        return self.operations.add_normed(x, self.conv2(self.conv1(x)), self.norm)


class Int8MixFFN(nn.Module):
    """A Mix-FFN with norm and residual, whose two products read 8-bit tokens."""

    def __init__(self, plain: MixFFN, operations: Operations, maps: MapOperations) -> None:
        super().__init__()
        assert plain.norm is not None and plain.residual
        self.conv_inverted = Int8Pointwise.of(plain.conv_inverted)
        self.conv_depth = plain.conv_depth
        self.conv_point = Int8Pointwise.of(plain.conv_point)
        self.norm = plain.norm
        self.operations, self.maps = operations, maps

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in and out."""
        grid = (x.shape[2], x.shape[3])
        do, wide = self.operations, cast(Int8Linear, self.conv_inverted)
        rows = do.quantised(x.permute(0, 2, 3, 1).flatten(1, 2))
        product = wide.product(rows, do.product_dtype)
        rows = do.mixed(product, rows.scale, wide.bias, self.conv_depth, grid)
        out = scaled(self.conv_point.product(rows), rows.scale, None)
        return self.maps.add_normed(x, out.unflatten(1, grid).permute(0, 3, 1, 2), self.norm)


class HalfConv3x3(nn.Module):
    """A Conv3x3 in bfloat16, between maps in float32."""

    def __init__(self, plain: Conv3x3) -> None:
        super().__init__()
        self.in_channels, self.out_channels = plain.in_channels, plain.out_channels
        # No buffers: bringing the module to another format leaves them.
        self.weight = plain.weight.detach().bfloat16()
        self.bias = None if plain.bias is None else plain.bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, O, H, W]."""
        return F.conv2d(x.bfloat16(), self.weight, self.bias, padding=1).float()

    def doubled(self, x: Tensor) -> Tensor:
        """Nearest upsampling by 2, then the convolution: [B, C, H, W] to [B, O, 2H, 2W]."""
        return self(F.interpolate(x.bfloat16(), scale_factor=2, mode="nearest"))


def quantize_decoder(autoencoder: Autoencoder, kernels: Path | None = None) -> str | None:
    """Replace blocks of the decoder in place, before it is prepared for inference.

    With a folder for `kernels`, what joins products is compiled C++. Where the processor is no
    faster with 8 bits nothing is replaced, and the line that is returned says what was measured.
    """
    maps = MapOperations() if kernels is None else CompiledMapOperations(kernels)
    operations = PlainOperations() if kernels is None else CompiledOperations(kernels)
    slower = slower_here(maps, kernels)
    if slower is not None:
        return slower
    for parent, name, block in list(_blocks(autoencoder.decoder.up_blocks)):
        if isinstance(block, ResBlock):
            setattr(parent, name, Int8ResBlock(block, maps))
            continue
        for projection in PROJECTIONS:
            layer = Int8Linear.of(getattr(block.attn, projection))
            layer.quantise = operations.quantised
            setattr(block.attn, projection, layer)
        block.conv_out = Int8MixFFN(block.conv_out, operations, maps)  # pyright: ignore
    if torch.cpu._is_amx_tile_supported():
        for module in autoencoder.decoder.up_blocks.modules():
            if isinstance(module, Upsample):
                module.conv = HalfConv3x3(module.conv)  # pyright: ignore
    return None


def decodes_in_8_bits(autoencoder: Autoencoder) -> bool:
    """Whether `quantize_decoder` has replaced something."""
    kinds = (Int8ResBlock, Int8MixFFN)
    return any(isinstance(module, kinds) for module in autoencoder.decoder.modules())


def _blocks(stages: nn.Module) -> Iterator[tuple[nn.Module, str, ResBlock | EfficientViTBlock]]:
    for parent in stages.modules():
        for name, block in parent.named_children():
            gains = isinstance(block, ResBlock) and block.conv1.in_channels >= NARROW
            if gains or isinstance(block, EfficientViTBlock):
                yield parent, name, cast(ResBlock | EfficientViTBlock, block)


@torch.inference_mode()
def slower_here(maps: MapOperations, kernels: Path | None) -> str | None:
    """What was measured, in one line, if a ResBlock takes longer here than in float32."""
    plain = ResBlock(CHECKED_CHANNELS, norm="rms_norm", activation="silu").eval()
    block = Int8ResBlock(copy.deepcopy(plain), maps)
    if kernels is not None:
        compile_convolutions(plain, kernels)
    x = torch.randn(1, CHECKED_CHANNELS, CHECKED_SIDE, CHECKED_SIDE)
    x = x.to(memory_format=torch.channels_last)
    own, other = (1000 * seconds(lambda part=part: part(x), x.device) for part in (block, plain))
    if own <= other:
        return None
    return (
        "the decoder stays in float32, which is faster here: a ResBlock of "
        f"{CHECKED_CHANNELS} channels at {CHECKED_SIDE} x {CHECKED_SIDE} takes {own:.1f} ms in "
        f"8 bits, {other:.1f} ms in float32"
    )

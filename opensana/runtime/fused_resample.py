"""Doubling and halving the resolution in fewer kernels, for inference on CUDA; channels last.

Doubling is a 2x2 convolution of the small map (`conv_of_doubled`) with 4/9 of the operations, and
the doubled map is never written; one kernel puts the four parts and the shortcut together. Since
the state-dict keys do not change, its kernels are held beside the weight that they come from.

Shapes: B batch, C channels, H W size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.autoencoder.resample import FACTOR, SHARES, Downsample, Upsample
from opensana.layers import Conv3x3
from opensana.layers.convolution import kernels_of_doubled


def as_tokens(x: Tensor) -> Tensor:
    """A map [B, C, H, W] as [B, H, W, C]: a view that is contiguous if the map is channels last."""
    return x.permute(0, 2, 3, 1)


def as_map(tokens: Tensor) -> Tensor:
    """[B, H, W, C] as a map [B, C, H, W]."""
    return tokens.permute(0, 3, 1, 2)


def can_fuse(plain: Upsample) -> bool:
    """Whether its convolution is a plain one and its shortcut repeats channels within squares."""
    repeats = FACTOR**2 * plain.out // plain.conv.in_channels
    return type(plain.conv) is Conv3x3 and (not plain.shortcut or repeats in SHARES)


class FusedUpsample(Upsample):
    """As `Upsample`: [B, C, H, W] to [B, out, 2H, 2W]."""

    kernels: Tensor
    """[4 out, C, 2, 2]: those of each of the four positions in a square."""

    def __init__(self, plain: Upsample) -> None:
        nn.Module.__init__(self)
        self.shuffle, self.conv, self.out = plain.shuffle, plain.conv, plain.out
        self.shortcut = plain.shortcut
        if not self.shuffle:
            kernels = kernels_of_doubled(self.conv.weight.detach().float())
            kernels = kernels.to(self.conv.weight.dtype, memory_format=torch.channels_last)
            self.register_buffer("kernels", kernels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.conv.bias
        if self.shuffle:
            squares, bias = self._shuffled(x), None
        else:
            squares = self._doubled(x)
        if self.shortcut:
            shares = self._shares(x)
            other = shares if bias is None else shares + bias  # of the small map
        else:
            other = bias
        made = x.new_empty(squares.shape)
        if other is None:
            made.copy_(squares)
        else:
            torch.add(squares, other, out=made)
        return as_map(made.flatten(3, 4).flatten(1, 2))

    def _doubled(self, x: Tensor) -> Tensor:
        """The convolution of the doubled map without its bias, [B, H, 2, W, 2, out].

        An odd row begins one position lower in the small one than the even row, and so on: the four
        parts of a square are where one more stride points.
        """
        made = as_tokens(F.conv2d(x, self.kernels, padding=1))  # [B, H + 1, W + 1, 4 out]
        (batch, _, height, width), out = x.shape, self.out
        one, row, column, channel = made.stride()
        return made.as_strided(
            (batch, height, 2, width, 2, out),
            (one, row, row + 2 * out * channel, column, column + out * channel, channel),
        )

    def _shuffled(self, x: Tensor) -> Tensor:
        """The convolution, whose channels pixel shuffle makes squares of: [B, H, 2, W, 2, out]."""
        tokens = as_tokens(self.conv(x)).unflatten(-1, (self.out, FACTOR, FACTOR))
        return tokens.permute(0, 1, 4, 2, 5, 3)

    def _shares(self, x: Tensor) -> Tensor:
        """The shortcut, as `add_repeated`: [B, H, 1 or 2, W, 1 or 2, out]."""
        rows, columns = SHARES[FACTOR**2 * self.out // x.shape[1]]
        tokens = as_tokens(x).unflatten(-1, (self.out, rows, columns))
        return tokens.permute(0, 1, 4, 2, 5, 3)


class FusedDownsample(Downsample):
    """As `Downsample`: [B, C, H, W] to [B, out, H/2, W/2]."""

    def __init__(self, plain: Downsample) -> None:
        nn.Module.__init__(self)
        self.unshuffle, self.conv, self.out = plain.unshuffle, plain.conv, plain.out
        self.shortcut = plain.shortcut

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        main = as_tokens(self.conv(x))
        if self.unshuffle:
            main = _squares(main).flatten(3)
        if self.shortcut:
            means = self._means(x)
            main.unflatten(-1, means.shape[3:]).add_(means)
        return as_map(main)

    def _means(self, x: Tensor) -> Tensor:
        """The shortcut, the means of runs of channels of what pixel unshuffle would make.

        A run is within a square, a square, or several: [B, H/2, W/2, ...], `out` in all.
        """
        run = FACTOR**2 * x.shape[1] // self.out
        squares = _squares(as_tokens(x)).unflatten(3, (-1, max(run // FACTOR**2, 1)))
        if run == 1:
            return squares
        return squares.mean((-1,) if run == FACTOR else (-3, -2, -1), keepdim=True)


def _squares(tokens: Tensor) -> Tensor:
    """[B, H, W, C] as [B, H/2, W/2, C, 2, 2], a view."""
    squares = tokens.unflatten(2, (-1, FACTOR)).unflatten(1, (-1, FACTOR))
    return squares.permute(0, 1, 3, 5, 2, 4)

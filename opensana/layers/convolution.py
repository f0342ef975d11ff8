"""3x3 convolutions with fewer multiplications than the definition, exact up to rounding.

B batch, C channels in, O out, H W size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.winograd import winograd_conv3x3

WIDE = 256
"""Channels from which Winograd's transforms cost less than they save."""
LARGE = 1024
"""Positions from which transforming the weights costs less than it saves."""


class Conv3x3(nn.Conv2d):
    """3x3 convolution with zero padding; in CPU inference by Winograd's algorithm if it is wide."""

    def __init__(self, channels: int, out: int, *, bias: bool = True) -> None:
        super().__init__(channels, out, 3, padding=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] to [B, O, H, W]."""
        wide = min(self.in_channels, self.out_channels) >= WIDE
        if wide and input.shape[-1] * input.shape[-2] >= LARGE and saves_products(input):
            return winograd_conv3x3(input, self.weight, self.bias)
        return super().forward(input)

    def doubled(self, x: Tensor) -> Tensor:
        """Nearest upsampling by 2, then the convolution: [B, C, H, W] to [B, O, 2H, 2W]."""
        if saves_products(x):
            return conv_of_doubled(x, self.weight, self.bias)
        return self(F.interpolate(x, scale_factor=2, mode="nearest"))


def saves_products(x: Tensor) -> bool:
    """Whether fewer multiplications save time: only in float32 CPU inference."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_grad_enabled()


def conv_of_doubled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest upsampling by 2 and a 3x3 convolution as 2x2 convolutions at the low resolution.

    Two of the three rows under the kernel are the same row of x, so their taps add up: an even
    output row sees (w0, w1 + w2), an odd one (w0 + w1, w2); likewise for columns. The four 2 x 2
    kernels need 4/9 of the multiplications.
    """
    out, (height, width) = len(weight), x.shape[2:]
    kernels = kernels_of_doubled(weight)
    made = F.conv2d(F.pad(x, (1, 1, 1, 1)), kernels).unflatten(1, (2, 2, out))
    result = x.new_empty(len(x), out, height, 2, width, 2)
    for row in range(2):
        for column in range(2):
            part = made[:, row, column, :, row : row + height, column : column + width]
            result[:, :, :, row, :, column] = part
    result = result.flatten(4).flatten(2, 3)
    return result if bias is None else result.add_(bias[:, None, None])


def kernels_of_doubled(weight: Tensor) -> Tensor:
    """The four kernels of `conv_of_doubled`, [4 O, C, 2, 2] of [O, C, 3, 3]; the row goes first."""
    # [O, C, 2, 2, 2, 2]: row parity, row, column parity, column
    folded = _fold(_fold(weight, 2), 4)
    return folded.permute(2, 4, 0, 1, 3, 5).reshape(4 * len(weight), -1, 2, 2)


def _fold(weight: Tensor, dim: int) -> Tensor:
    """Three taps in `dim` to [2, 2]: parity, tap."""
    first, middle, last = weight.unbind(dim)
    even, odd = (first, middle + last), (first + middle, last)
    return torch.stack([torch.stack(even, dim), torch.stack(odd, dim)], dim)

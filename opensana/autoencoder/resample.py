"""Residual autoencoding: resampling blocks with parameter-free shortcuts (DC-AE paper 3.2).

A shortcut moves space to channels (or back) and averages (or repeats) neighbouring channels, so
that the convolution beside it only has to learn what this loses.

B batch, C channels, H W height and width.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers import Conv3x3

FACTOR = 2

Down = Literal["Conv", "pixel_unshuffle"]
Up = Literal["interpolate", "pixel_shuffle"]


def average_channels(x: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to [B, channels, H, W]: the mean of each run of C / channels channels."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to [B, channels, H, W]: each channel channels / C times in a row."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


class Downsample(nn.Module):
    """Half the height and width: [B, C, H, W] to [B, out, H/2, W/2]."""

    def __init__(self, channels: int, out: int, *, kind: Down, shortcut: bool = True) -> None:
        super().__init__()
        self.unshuffle = kind == "pixel_unshuffle"
        width, stride = (out // FACTOR**2, 1) if self.unshuffle else (out, FACTOR)
        self.conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1)
        self.out = out
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        main = self.conv(x)
        if self.unshuffle:
            main = F.pixel_unshuffle(main, FACTOR)
        if not self.shortcut:
            return main
        return main + average_channels(F.pixel_unshuffle(x, FACTOR), self.out)


class Upsample(nn.Module):
    """Twice the height and width: [B, C, H, W] to [B, out, 2H, 2W]."""

    def __init__(self, channels: int, out: int, *, kind: Up, shortcut: bool = True) -> None:
        super().__init__()
        self.shuffle = kind == "pixel_shuffle"
        width = out * FACTOR**2 if self.shuffle else out
        self.conv = Conv3x3(channels, width)
        self.out = out
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        main = F.pixel_shuffle(self.conv(x), FACTOR) if self.shuffle else self.conv.doubled(x)
        if not self.shortcut:
            return main
        return main + F.pixel_shuffle(repeat_channels(x, self.out * FACTOR**2), FACTOR)

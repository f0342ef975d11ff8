"""Residual autoencoding: resampling with parameter-free shortcuts (DC-AE, arXiv 2410.10733, 3.2).

A shortcut moves space to channels (or back) and averages (or duplicates) neighbouring channels; the
convolution learns only the residual.

B batch, C channels, H W height and width.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers import Conv3x3

FACTOR = 2
# Repeats of a channel -> rows and columns of distinct values in a 2 x 2 square.
SHARES = {1: (2, 2), 2: (2, 1), 4: (1, 1)}

Down = Literal["Conv", "pixel_unshuffle"]
Up = Literal["interpolate", "pixel_shuffle"]


def average_channels(x: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to [B, channels, H, W]: the mean of each run of C / channels channels."""
    return x.unflatten(1, (channels, -1)).mean(dim=2)


def repeat_channels(x: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to [B, channels, H, W]: each channel channels / C times in a row."""
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def add_repeated(main: Tensor, x: Tensor) -> Tensor:
    """main [B, out, 2H, 2W] + pixel_shuffle of x [B, C, H, W] with repeated channels, no copies.

    Each channel of x is repeated 4 out / C times among the 4 out channels that pixel shuffle moves
    to 2 x 2 squares: it is added to one position, to a row of two or to all four.
    """
    repeats = FACTOR**2 * main.shape[1] // x.shape[1]
    if repeats not in SHARES:
        return main + F.pixel_shuffle(repeat_channels(x, repeats * x.shape[1]), FACTOR)
    rows, columns = SHARES[repeats]
    shares = x.unflatten(1, (main.shape[1], rows, columns)).permute(0, 1, 4, 2, 5, 3)
    squares = main.unflatten(3, (-1, FACTOR)).unflatten(2, (-1, FACTOR))
    return (squares + shares).flatten(4).flatten(2, 3)


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
        return add_repeated(main, x)

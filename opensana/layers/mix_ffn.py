"""Mix-FFN: a gated feed-forward with a 3x3 depthwise convolution (paper 2.2, GLUMBConv).

The depthwise convolution brings back the locality that linear attention lacks, and tells
tokens where they are, so that no positional encoding is needed.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.norm import RMSNorm2d, add_normed


class MixFFN(nn.Module):
    """1x1 to twice `hidden`, SiLU, 3x3 depthwise, x * SiLU(gate), 1x1 back.

    [B, C, H, W] in and out. The autoencoder adds a norm and a residual, the transformer neither.
    """

    def __init__(
        self, channels: int, hidden: int, *, norm: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.activation: nn.Module = nn.SiLU()
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norm = RMSNorm2d(channels) if norm else None
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.conv_depth(self.activation(self.conv_inverted(x))).chunk(2, dim=1)
        out = self.conv_point(hidden * F.silu(gate))
        if self.norm is not None and self.residual:
            return add_normed(x, out, self.norm)
        out = out if self.norm is None else self.norm(out)
        return x + out if self.residual else out

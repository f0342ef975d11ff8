"""Mix-FFN (GLUMBConv): a GLU with a 3x3 depthwise convolution (paper 2.2, arXiv 2002.05202).

The depthwise convolution adds the locality that linear attention lacks, and position, so that no
positional encoding is needed (NoPE).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.norm import RMSNorm2d, add_normed


class MixFFN(nn.Module):
    """1x1 to 2 * `hidden` channels, SiLU, 3x3 depthwise, GLU x * SiLU(gate), 1x1 back.

    [B, C, H, W] in and out. The autoencoder adds a norm and a residual, the transformer neither.
    """

    middle: Callable[[nn.Conv2d, Tensor], Tensor]
    """The depthwise convolution with the gate, [B, 2 `hidden`, H, W] to [B, `hidden`, H, W]."""

    def __init__(
        self, channels: int, hidden: int, *, norm: bool = False, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv_inverted = nn.Conv2d(channels, 2 * hidden, 1)
        self.activation: nn.Module = nn.SiLU()
        self.conv_depth = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.conv_point = nn.Conv2d(hidden, channels, 1, bias=False)
        self.middle = depthwise_gated
        self.norm = RMSNorm2d(channels) if norm else None
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        # No wide map has a name here: it would live on beside the next.
        out = self.conv_point(self.middle(self.conv_depth, self.activation(self.conv_inverted(x))))
        if self.norm is not None and self.residual:
            return add_normed(x, out, self.norm)
        out = out if self.norm is None else self.norm(out)
        return x + out if self.residual else out


def depthwise_gated(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of [B, 2 C, H, W], gated."""
    x = layer(x)
    return gated(x)


def gated(x: Tensor) -> Tensor:
    """GLU: the first half of the channels of [B, 2 C, H, W] times SiLU of the second half."""
    # torch.compile fuses the plain form, and cannot trace a Function with its own jvp. Writing into
    # halves of a map has been a weak place of Apple GPUs.
    plain = torch.compiler.is_compiling() or x.device.type == "mps"
    if plain or not torch.is_grad_enabled():
        return Gated.forward(x)
    return Gated.apply(x)


class Gated(torch.autograd.Function):
    """`gated` with a leaner backward pass, which writes both halves of the gradient in place.

    Autograd would also store SiLU(gate), and concatenate the halves.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, dim=1)
        return hidden * F.silu(gate)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (gradient,), (x,) = grad_outputs, ctx.saved_tensors
        hidden, gate = x.chunk(2, dim=1)
        both = torch.empty_like(x)
        of_hidden, of_gate = both.chunk(2, dim=1)
        torch.ops.aten.silu(gate, out=of_hidden).mul_(gradient)
        torch.mul(gradient, hidden, out=of_gate)
        torch.ops.aten.silu_backward(of_gate, gate, grad_input=of_gate)
        return both

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        (tangent,), (x,) = grad_inputs, ctx.saved_tensors
        hidden, gate = x.chunk(2, dim=1)
        of_hidden, of_gate = tangent.chunk(2, dim=1)
        return of_hidden * F.silu(gate) + hidden * torch.ops.aten.silu_backward(of_gate, gate)

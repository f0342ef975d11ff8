"""The two blocks of DC-AE: ResBlock, and EfficientViT's block with linear attention.

B batch, C channels, H W height and width, N = H * W positions, D channels a head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opensana.layers import Conv3x3, MixFFN, RMSNorm2d, add_normed, relu_linear_attention

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}
NORMS: dict[str, type[nn.Module]] = {"batch_norm": nn.BatchNorm2d, "rms_norm": RMSNorm2d}
FFN_RATIO = 4


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a norm, with a residual; [B, C, H, W] in and out."""

    def __init__(self, channels: int, *, norm: str, activation: str) -> None:
        super().__init__()
        self.conv1 = Conv3x3(channels, channels)
        self.activation = ACTIVATIONS[activation]()
        self.conv2 = Conv3x3(channels, channels, bias=False)
        self.norm = NORMS[norm](channels)

    def forward(self, x: Tensor) -> Tensor:
        return add_normed(x, self.conv2(self.activation(self.conv1(x))), self.norm)


class MultiscaleProjection(nn.Module):
    """Queries, keys and values of another scale: a depthwise, then a grouped 1x1 convolution."""

    def __init__(self, channels: int, *, heads: int, kernel: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )
        self.proj_out = nn.Conv2d(channels, channels, 1, groups=3 * heads, bias=False)

    def forward(self, qkv: Tensor) -> Tensor:
        return self.proj_out(self.proj_in(qkv))


class MultiscaleLinearAttention(nn.Module):
    """Multi-scale ReLU linear attention (EfficientViT, arXiv 2205.14756, section 3.1), residual.

    [B, C, H, W] in and out. `to_q`, `to_k` and `to_v` are the thirds of one fused projection. Each
    head takes 3D consecutive channels of it, so its queries may come from any of the three.
    """

    def __init__(self, channels: int, *, head: int, kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        heads = channels // head
        inner = heads * head
        self.head = head
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_qkv_multiscale = nn.ModuleList(
            MultiscaleProjection(3 * inner, heads=heads, kernel=kernel) for kernel in kernels
        )
        self.to_out = nn.Linear(inner * (1 + len(kernels)), channels, bias=False)
        self.norm_out = NORMS[norm](channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(x, relu_linear_attention(*self.project(x)))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all scales, [B, heads, N, D] each."""
        positions = x.permute(0, 2, 3, 1)
        thirds = [layer(positions) for layer in (self.to_q, self.to_k, self.to_v)]
        qkv = torch.cat(thirds, dim=-1).permute(0, 3, 1, 2)
        qkv = torch.cat([qkv, *(scale(qkv) for scale in self.to_qkv_multiscale)], dim=1)
        heads = qkv.reshape(x.shape[0], -1, 3 * self.head, x.shape[2] * x.shape[3])
        query, key, value = heads.transpose(-1, -2).chunk(3, dim=-1)
        return query, key, value

    def merge(self, x: Tensor, attended: Tensor) -> Tensor:
        """x [B, C, H, W] plus the normed projection of the attention's output [B, heads, N, D]."""
        attended = attended.transpose(-1, -2).reshape(x.shape[0], -1, *x.shape[2:])
        out = self.to_out(attended.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return add_normed(x, out, self.norm_out)


class EfficientViTBlock(nn.Module):
    """Linear attention, then Mix-FFN, each with a residual; [B, C, H, W] in and out."""

    def __init__(self, channels: int, *, head: int, kernels: Sequence[int], norm: str) -> None:
        super().__init__()
        self.attn = MultiscaleLinearAttention(channels, head=head, kernels=kernels, norm=norm)
        self.conv_out = MixFFN(channels, FFN_RATIO * channels, norm=True, residual=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.attn(x))

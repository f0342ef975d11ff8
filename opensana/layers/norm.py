"""Root-mean-square norms: no mean is subtracted (Zhang and Sennrich, arXiv 1910.07467)."""

import torch
from torch import Tensor, nn

BAND_BYTES = 2**20


class RMSNorm(nn.Module):
    """RMS norm over the last dimension of tokens [B, N, C], with a weight and no bias."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # With weights in float32 nothing is rounded: what autocast made narrow is widened here.
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return _normalise(x, dim=-1, eps=self.eps).to(wide) * self.weight


class RMSNorm2d(nn.Module):
    """RMS norm over the channels of a feature map [B, C, H, W], with weight and bias."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normal = _normalise(x, dim=1, eps=self.eps).to(x.dtype)
        return torch.addcmul(self.bias[:, None, None], normal, self.weight[:, None, None])


def add_normed(x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
    """x + norm(branch), all [B, C, H, W]; without gradients in the memory of `branch`.

    Then a band of rows goes through all of it while it is in the cache: a map of the decoder's last
    stage is larger than any.
    """
    if not isinstance(norm, RMSNorm2d) or torch.is_grad_enabled() or x.device.type != "cpu":
        return x + norm(branch)
    rows = max(1, BAND_BYTES * branch.shape[2] // (branch.nbytes + 1))
    for part, shortcut in zip(branch.split(rows, dim=2), x.split(rows, dim=2), strict=True):
        part.copy_(norm(part)).add_(shortcut)
    return branch


def _normalise(x: Tensor, *, dim: int, eps: float) -> Tensor:
    mean_square = x.float().square().mean(dim, keepdim=True)
    return x * torch.rsqrt(mean_square + eps)

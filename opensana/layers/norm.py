"""RMSNorm (Zhang and Sennrich, arXiv 1910.07467, equation 4): no mean is subtracted."""

import torch
from torch import Tensor, nn

BAND_BYTES = 2**20


class RMSNorm(nn.Module):
    """RMSNorm over the channels of tokens [B, N, C], with a weight and no bias."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Float32 weights give a float32 result, also for the half-precision input of autocast.
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        return _normalise(x, dim=-1, eps=self.eps).to(wide) * self.weight


class RMSNorm2d(nn.Module):
    """RMSNorm over the channels of a feature map [B, C, H, W], with weight and bias."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normal = _normalise(x, dim=1, eps=self.eps).to(x.dtype)
        return torch.addcmul(self.bias[:, None, None], normal, self.weight[:, None, None])

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """x + norm(branch), all [B, C, H, W]; on a CPU without gradients it overwrites `branch`.

        It then works in bands of rows that fit the CPU cache, which no map of the decoder's last
        stage does.
        """
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return x + self(branch)
        rows = max(1, BAND_BYTES * branch.shape[2] // (branch.nbytes + 1))
        for part, shortcut in zip(branch.split(rows, dim=2), x.split(rows, dim=2), strict=True):
            part.copy_(self(part)).add_(shortcut)
        return branch


def add_normed(x: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
    """x + norm(branch), all [B, C, H, W]; without gradients it may overwrite `branch`."""
    return norm.add(x, branch) if isinstance(norm, RMSNorm2d) else x + norm(branch)


def _normalise(x: Tensor, *, dim: int, eps: float) -> Tensor:
    mean_square = x.float().square().mean(dim, keepdim=True)
    return x * torch.rsqrt(mean_square + eps)

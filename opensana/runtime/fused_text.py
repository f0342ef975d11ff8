"""A language model's norms in fewer kernels, for inference on CUDA.

Gemma's RMSNorm is float32 whatever its input is, and one plus its weight scales it: ten operations
of torch in half precision. Here one plus the weight is made once, and torch's own kernel does the
rest between two changes of format. All numbers are the plain norm's up to rounding in float32.
`fuse_norms` is applied from outside; the state-dict keys do not change.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.text.gemma3 import Norm

SAME = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
"""Classes of transformers that compute the same as `Norm`."""


def fuse_norms(model: nn.Module) -> None:
    """Replace the norms of a placed Gemma, in place; other models have none of these."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, Norm) or type(child).__name__ in SAME:
                setattr(part, name, FusedNorm(child))


class FusedNorm(nn.Module):
    """As `Norm`, in three kernels: of the last dimension of x."""

    scale: Tensor
    """1 + weight, float32."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.weight, self.eps = plain.weight, plain.eps
        self.register_buffer("scale", 1.0 + plain.weight.detach().float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # As rows: in four dimensions torch may leave its own kernel.
        wide = x.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, -2)
        return F.rms_norm(wide, self.scale.shape, self.scale, self.eps).view(x.shape).to(x.dtype)

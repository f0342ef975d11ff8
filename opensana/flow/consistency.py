"""Continuous-time consistency distillation on the straight path (SANA-Sprint 2503.09641, 3).

f(x, sigma) = x - sigma v(x, sigma) predicts the end of the flow dx/dsigma = u through x. Along that
flow the prediction must not change:

    df/dsigma = u - v - sigma (dv/dx u + dv/dsigma) = 0

At sigma = 0 this is flow matching, v = u; from there it spreads to all noise levels. This is sCM
(arXiv 2410.11081, section 3), which Sprint states in TrigFlow's coordinates (`scm.py`).

B samples; latents are [B, C, H, W].
"""

import torch
from torch import Tensor

from opensana.flow.guidance import Velocity

CALM = 0.1
"""c of tangent normalisation g / (|g| + c) (sCM, section 4.2)."""


def change_along(
    velocity: Velocity, x: Tensor, sigma: Tensor, flow: Tensor, *, warmth: float = 1.0
) -> tuple[Tensor, Tensor]:
    """v(x, sigma) and the tangent df/dsigma along `flow` [B, C, H, W], both without gradients.

    `velocity` takes sigma [B] itself. `warmth` is r of tangent warmup (sCM, section 4.2): it scales
    the derivative of v, which is unstable at first, from 0 to 1.
    """
    with torch.no_grad():
        both = torch.func.jvp(velocity, (x, sigma), (flow, torch.ones_like(sigma)))
        v, change = both[0].float(), both[1].float()
        return v, flow - v - warmth * sigma[:, None, None, None] * change


def consistency_loss(v: Tensor, frozen: Tensor, change: Tensor) -> Tensor:
    """|v - (frozen + change / (|change| + 0.1))|^2 of each sample [B], summed over the latent.

    `frozen` is v without gradients. Normalised tangents have a length near 1 at every noise level,
    so no weight by level is needed.
    """
    length = change.flatten(1).norm(dim=1)[:, None, None, None]
    target = frozen + change / (length + CALM)
    return (v.float() - target).square().flatten(1).sum(1)

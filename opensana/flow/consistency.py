"""Continuous-time consistency on the straight path (SANA-Sprint, arXiv 2503.09641, 3.1).

f(x, sigma) = x - sigma v(x, sigma) answers the data at the end of a flow dx/dsigma = u through x.
Along that flow the answer must not change:

    df/dsigma = u - v - sigma (dv/dx u + dv/dsigma) = 0

At sigma = 0 this is flow matching, v = u; from there it carries the teacher's ends to all levels.
This is sCM (arXiv 2410.11081); Sprint states it on TrigFlow's circle, which is this path in other
coordinates (`scm.py`).

B samples; latents are [B, C, H, W].
"""

import torch
from torch import Tensor

from opensana.flow.guidance import Velocity

CALM = 0.1
"""Added to the norm by which a change is divided: what is nearly right moves less."""


def change_along(
    velocity: Velocity, x: Tensor, sigma: Tensor, flow: Tensor, *, warmth: float = 1.0
) -> tuple[Tensor, Tensor]:
    """v(x, sigma) and df/dsigma along `flow` [B, C, H, W], both without gradients.

    `velocity` takes sigma [B] itself. `warmth` from 0 to 1 is how much of the derivative of v
    counts, which is unsteady at first.
    """
    with torch.no_grad():
        both = torch.func.jvp(velocity, (x, sigma), (flow, torch.ones_like(sigma)))
        v, change = both[0].float(), both[1].float()
        return v, flow - v - warmth * sigma[:, None, None, None] * change


def consistency_loss(v: Tensor, frozen: Tensor, change: Tensor) -> Tensor:
    """|v - (frozen + change / (|change| + 0.1))|^2 of each sample [B], summed over the latent.

    `frozen` is v without gradients. All changes have a length near 1, so that no level of noise
    needs a weight of its own.
    """
    length = change.flatten(1).norm(dim=1)[:, None, None, None]
    target = frozen + change / (length + CALM)
    return (v.float() - target).square().flatten(1).sum(1)

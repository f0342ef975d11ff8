"""What the autoencoder's reconstruction is punished for (DC-AE paper 3.3).

B batch, H W size. Pixels are in [-1, 1].
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from opensana.metrics.lpips import load_lpips
from opensana.train.recipe import ReconstructionLossRecipe

GRADIENT_SCALES = 3


class ReconstructionLoss:
    """The terms of the loss that have a weight, and their weighted sum."""

    def __init__(self, weights: ReconstructionLossRecipe) -> None:
        factors = {
            "mse": weights.mse,
            "l1": weights.l1,
            "gradient_l1": weights.gradient,
            "lpips": weights.lpips,
        }
        self.factors = {name: factor for name, factor in factors.items() if factor}
        self.measures: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            "mse": functional.mse_loss,
            "l1": functional.l1_loss,
            "gradient_l1": gradient_difference,
        }
        if weights.lpips_weights is not None:
            lpips = load_lpips(weights.lpips_weights)
            self.measures["lpips"] = lambda output, pixels: lpips.to(output.device)(
                output, pixels
            ).mean()

    def terms(self, output: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """The plain terms for pictures [B, 3, H, W]."""
        return {name: self.measures[name](output, pixels) for name in self.factors}

    def weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.factors[name] * term for name, term in terms.items()]).sum()


def gradient_difference(output: Tensor, pixels: Tensor) -> Tensor:
    """L1 between the edges of both at several scales: sharpness without a pretrained network."""
    error, total = output - pixels, output.new_zeros(())
    for _ in range(GRADIENT_SCALES):
        total = total + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        error = functional.avg_pool2d(error, 2)
    return total / GRADIENT_SCALES

"""PatchGAN discriminator and hinge losses of the local refinement phase (DC-AE paper 3.3).

Group normalisation stands where the original has batch normalisation: a picture is seen by
itself, and averaged or resumed weights need no running statistics. Pixels [B, 3, H, W] in [-1, 1].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchDiscriminator(nn.Module):
    """`depth` halvings, then one logit for each overlapping patch: [B, 1, h, w]."""

    def __init__(self, *, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for level in range(1, depth + 1):
            wider = width * min(2**level, 8)
            stride = 2 if level < depth else 1
            layers += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(min(8, wider // 4), wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers(pixels).float()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: real logits above 1, fake ones below -1."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    return -fake.mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor that gives both losses equal gradients at the decoder's last layer.

    VQGAN (arXiv 2012.09841), equation 7.
    """
    (wanted,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (pushed,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (wanted.norm() / (pushed.norm() + 1e-4)).clamp(0, 1e4).detach()

"""LPIPS, the perceptual distance of two pictures (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

The features of VGG16 after each of its five groups of convolutions are brought to unit length, and
their squared differences weighted by linear heads that were fitted to people's judgements. The
weights are the user's: `opensana convert` makes them from torchvision's VGG16 and the heads of
LPIPS 0.1.

B batch, C channels, H W size. Pixels are in [-1, 1].
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from opensana.errors import WeightsError
from opensana.weights.safetensors import load_into, read_safetensors

LPIPS_PRESET = "lpips_vgg16"
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation, for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST_SIDE = 16
SMALLEST_ENERGY = 1e-10


class Lpips(nn.Module):
    """The distance [B] of pictures [B, 3, H, W], at least 16 pixels a side; 0 for equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.taps = vgg16_features()
        self.heads = nn.ParameterList(torch.zeros(group[-1]) for group in GROUPS)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(self.directions(first), self.directions(second), strict=True)
        distances = [
            (one - other).square().mul(head[:, None, None]).sum(1).mean((1, 2))
            for head, (one, other) in zip(self.heads, pairs, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def directions(self, pixels: Tensor) -> Iterator[Tensor]:
        """The features of each group in float32, of unit length at every position."""
        shift, scale = pixels.new_tensor(SHIFT), pixels.new_tensor(SCALE)
        x = (pixels - shift[:, None, None]) / scale[:, None, None]
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                # The root of zero has no gradient, and dead positions are common.
                energy = x.float().square().sum(1, keepdim=True) + SMALLEST_ENERGY
                yield x.float() * energy.rsqrt()


def vgg16_features() -> tuple[nn.Sequential, tuple[int, ...]]:
    """VGG16's thirteen convolutions under torchvision's names, and the last layer of each group."""
    layers: list[nn.Module] = []
    taps: list[int] = []
    channels = 3
    for group in GROUPS:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for width in group:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        taps.append(len(layers) - 1)
    return nn.Sequential(*layers), tuple(taps)


def load_lpips(path: str | Path) -> Lpips:
    """Frozen LPIPS of a converted folder or safetensors file."""
    path = Path(path).expanduser()
    if path.is_file() and path.suffix.lower() != ".safetensors":
        raise WeightsError(
            f"{path} is no safetensors file; make one of torchvision's VGG16 and the heads of"
            f" LPIPS: opensana convert vgg16.pth lpips --preset {LPIPS_PRESET} --heads vgg.pth"
        )
    return lpips_of(read_safetensors(path), where=path).requires_grad_(False).eval()


def lpips_of(state: Mapping[str, Tensor], *, where: str | Path) -> Lpips:
    """LPIPS with these weights; a missing or foreign tensor is a WeightsError."""
    with torch.device("meta"):
        module = Lpips()
    load_into(module, state, where=where)
    return module


def joined(vgg16: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for torchvision's VGG16 without its classifier and for LPIPS's linear heads."""
    convolutions = {name: value for name, value in vgg16.items() if name.startswith("features.")}
    linear = {f"heads.{i}": heads.get(f"lin{i}.model.1.weight") for i in range(len(GROUPS))}
    missing = [name for name, value in linear.items() if value is None]
    if missing:
        raise WeightsError(f"the file of heads lacks lin{missing[0][-1]}.model.1.weight of LPIPS")
    return convolutions | {name: v.flatten() for name, v in linear.items() if v is not None}

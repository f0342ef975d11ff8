"""LPIPS, the perceptual distance of two pictures (Zhang et al. 2018, arXiv 1801.03924, eq. 1).

The features of five layers of VGG16 or AlexNet are brought to unit length, and their squared
differences weighted by linear heads that were fitted to people's judgements. VGG16 is usual as a
loss, AlexNet as a figure. The weights are the user's: `opensana convert` makes them from
torchvision's network and the heads of LPIPS 0.1.

B batch, C channels, H W size. Pixels are in [-1, 1].
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from opensana.errors import WeightsError
from opensana.weights.safetensors import load_into, read_safetensors

NetworkName = Literal["vgg16", "alexnet"]
LPIPS_PRESETS: dict[str, NetworkName] = {"lpips_vgg16": "vgg16", "lpips_alexnet": "alexnet"}
HEADS: dict[NetworkName, str] = {"vgg16": "vgg.pth", "alexnet": "alex.pth"}
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation, for pixels in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
SMALLEST_SIDE = 32
SMALLEST_ENERGY = 1e-10
FIRST = "features.0.weight"


class Lpips(nn.Module):
    """The distance [B] of pictures [B, 3, H, W], at least 32 pixels a side; 0 for equal ones."""

    def __init__(self, network: NetworkName = "vgg16") -> None:
        super().__init__()
        self.network: NetworkName = network
        self.features, self.taps = NETWORKS[network]()
        widths = [cast(nn.Conv2d, self.features[tap - 1]).out_channels for tap in self.taps]
        self.heads = nn.ParameterList(torch.zeros(width) for width in widths)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(self.directions(first), self.directions(second), strict=True)
        distances = [
            (one - other).square().mul(head[:, None, None]).sum(1).mean((1, 2))
            for head, (one, other) in zip(self.heads, pairs, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def directions(self, pixels: Tensor) -> Iterator[Tensor]:
        """The features of each layer in float32, of unit length at every position."""
        shift, scale = pixels.new_tensor(SHIFT), pixels.new_tensor(SCALE)
        x = (pixels - shift[:, None, None]) / scale[:, None, None]
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                # The root of zero has no gradient, and dead positions are common.
                energy = x.float().square().sum(1, keepdim=True) + SMALLEST_ENERGY
                yield x.float() * energy.rsqrt()


def vgg16() -> tuple[nn.Sequential, tuple[int, ...]]:
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


def alexnet() -> tuple[nn.Sequential, tuple[int, ...]]:
    """AlexNet's five convolutions under torchvision's names, and the layer after each."""
    layers = (
        *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
    )
    return nn.Sequential(*layers), (1, 4, 7, 9, 11)


NETWORKS: dict[NetworkName, Callable[[], tuple[nn.Sequential, tuple[int, ...]]]] = {
    "vgg16": vgg16,
    "alexnet": alexnet,
}


def load_lpips(path: str | Path) -> Lpips:
    """Frozen LPIPS of a converted folder or safetensors file."""
    path = Path(path).expanduser()
    if not path.exists() or (path.is_file() and path.suffix.lower() != ".safetensors"):
        what = "is no safetensors file" if path.exists() else "is not there"
        raise WeightsError(f"{path} {what}; {how_to_get()}")
    state = read_safetensors(path)
    large = FIRST in state and state[FIRST].shape[-1:] == (11,)  # AlexNet's first kernel
    network: NetworkName = "alexnet" if large else "vgg16"
    return lpips_of(state, network, where=path).requires_grad_(False).eval()


def lpips_of(
    state: Mapping[str, Tensor], network: NetworkName = "vgg16", *, where: str | Path
) -> Lpips:
    """LPIPS with these weights; a missing or foreign tensor is a WeightsError."""
    with torch.device("meta"):
        module = Lpips(network)
    load_into(module, state, where=where)
    return module


def joined(network: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names for torchvision's network without its classifier and for LPIPS's linear heads."""
    convolutions = {name: value for name, value in network.items() if name.startswith("features.")}
    linear = {f"heads.{i}": heads.get(f"lin{i}.model.1.weight") for i in range(len(GROUPS))}
    missing = [name for name, value in linear.items() if value is None]
    if missing:
        raise WeightsError(f"the file of heads lacks lin{missing[0][-1]}.model.1.weight of LPIPS")
    return convolutions | {name: v.flatten() for name, v in linear.items() if v is not None}


def how_to_get() -> str:
    return (
        "get AlexNet (alexnet-owt-7be5be79.pth) or VGG16 (vgg16-397923af.pth) of torchvision and "
        "alex.pth or vgg.pth from lpips/weights/v0.1 of richzhang/PerceptualSimilarity on GitHub, "
        "then: opensana convert alexnet-owt-7be5be79.pth lpips --preset lpips_alexnet "
        "--heads alex.pth"
    )

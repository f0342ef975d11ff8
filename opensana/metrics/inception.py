"""InceptionV3 as the Fréchet Inception Distance takes it (Szegedy et al. 2015, Heusel et al. 2017).

It is TensorFlow's network of 2015-12-05, not torchvision's: average pools leave padding out of the
mean, the last block pools by the maximum, and features are the mean over the last map. Names are
those of the published file, `pt_inception-2015-12-05-6726825d.pth`, whose classifier is not read.

B batch, H W size, 2048 features.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from opensana.errors import WeightsError
from opensana.weights.safetensors import load_into, read_safetensors

INCEPTION_PRESET = "inception_fid"
PUBLISHED = "pt_inception-2015-12-05-6726825d.pth"
SIZE, FEATURES = 299, 2048
EPSILON = 1e-3
CLASSIFIER = ("fc.weight", "fc.bias")
COUNTER = ".num_batches_tracked"
Kernel = int | tuple[int, int]


class FrozenNorm(nn.Module):
    """Batch norm with its stored mean and variance."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPSILON
        )


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inner: int, outer: int, kernel: Kernel, stride: int = 1, pad: Any = 0):
        super().__init__()
        self.conv = nn.Conv2d(inner, outer, kernel, stride, pad, bias=False)
        self.bn: nn.Module = FrozenNorm(outer)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)), inplace=True)


def _mean3(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _in_turn(block: nn.Module, x: Tensor, *names: str) -> Tensor:
    for name in names:
        x = getattr(block, name)(x)
    return x


class BlockA(nn.Module):
    def __init__(self, inner: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(inner, 64, 1)
        self.branch5x5_1 = ConvNorm(inner, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, pad=2)
        self.branch3x3dbl_1 = ConvNorm(inner, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, pad=1)
        self.branch_pool = ConvNorm(inner, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = _in_turn(self, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        five = _in_turn(self, x, "branch5x5_1", "branch5x5_2")
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_mean3(x))], 1)


class BlockB(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(inner, 384, 3, 2)
        self.branch3x3dbl_1 = ConvNorm(inner, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = _in_turn(self, x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        across: dict[str, Any] = {"kernel": (1, 7), "pad": (0, 3)}
        down: dict[str, Any] = {"kernel": (7, 1), "pad": (3, 0)}
        self.branch1x1 = ConvNorm(inner, 192, 1)
        self.branch7x7_1 = ConvNorm(inner, width, 1)
        self.branch7x7_2 = ConvNorm(width, width, **across)
        self.branch7x7_3 = ConvNorm(width, 192, **down)
        self.branch7x7dbl_1 = ConvNorm(inner, width, 1)
        self.branch7x7dbl_2 = ConvNorm(width, width, **down)
        self.branch7x7dbl_3 = ConvNorm(width, width, **across)
        self.branch7x7dbl_4 = ConvNorm(width, width, **down)
        self.branch7x7dbl_5 = ConvNorm(width, 192, **across)
        self.branch_pool = ConvNorm(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = _in_turn(self, x, *(f"branch7x7_{i}" for i in range(1, 4)))
        double = _in_turn(self, x, *(f"branch7x7dbl_{i}" for i in range(1, 6)))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_mean3(x))], 1)


class BlockD(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(inner, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, 2)
        self.branch7x7x3_1 = ConvNorm(inner, 192, 1)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), pad=(0, 3))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), pad=(3, 0))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        three = _in_turn(self, x, "branch3x3_1", "branch3x3_2")
        seven = _in_turn(self, x, *(f"branch7x7x3_{i}" for i in range(1, 5)))
        return torch.cat([three, seven, functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    def __init__(self, inner: int, *, last: bool) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = ConvNorm(inner, 320, 1)
        self.branch3x3_1 = ConvNorm(inner, 384, 1)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), pad=(0, 1))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), pad=(1, 0))
        self.branch3x3dbl_1 = ConvNorm(inner, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, pad=1)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), pad=(0, 1))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), pad=(1, 0))
        self.branch_pool = ConvNorm(inner, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = _in_turn(self, x, "branch3x3dbl_1", "branch3x3dbl_2")
        # The published network pools the last block by its maximum.
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.last else _mean3(x)
        parts = [
            self.branch1x1(x),
            *(self.branch3x3_2a(three), self.branch3x3_2b(three)),
            *(self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)),
            self.branch_pool(pooled),
        ]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Pictures [B, 3, 299, 299] in -1..1 to features [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, pad=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (
            BlockA(192, 32),
            BlockA(256, 64),
            BlockA(288, 64),
        )
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, last=False), BlockE(2048, last=True)

    def forward(self, pixels: Tensor) -> Tensor:
        for name, layer in self.named_children():
            pixels = layer(pixels)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                pixels = functional.max_pool2d(pixels, 3, 2)
        return pixels.mean((2, 3))


def without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a published file that give features."""
    return {k: v for k, v in state.items() if k not in CLASSIFIER and not k.endswith(COUNTER)}


def inception_of(state: Mapping[str, Tensor], *, where: str | Path) -> Inception:
    """The frozen network with these weights; a missing or foreign tensor is a WeightsError."""
    with torch.device("meta"):
        network = Inception()
    load_into(network, without_classifier(state), where=where)
    return network.float().requires_grad_(False).eval()


def load_inception(path: str | Path) -> Inception:
    """From a converted folder or a safetensors file."""
    path = Path(path).expanduser()
    if not path.exists() or (path.is_file() and path.suffix.lower() != ".safetensors"):
        what = "is no safetensors file" if path.exists() else "is not there"
        raise WeightsError(f"{path} {what}; {how_to_get()}")
    return inception_of(read_safetensors(path), where=path)


def for_inference(network: Inception) -> Inception:
    """A copy whose norms are multiplied into the convolutions before them."""
    network = copy.deepcopy(network)
    for layer in [layer for layer in network.modules() if isinstance(layer, ConvNorm)]:
        norm = cast(FrozenNorm, layer.bn)
        weight, bias = fuse_conv_bn_weights(
            layer.conv.weight,
            None,
            *(norm.running_mean, norm.running_var, EPSILON, norm.weight, norm.bias),
        )
        layer.conv.weight, layer.conv.bias = weight, bias
        layer.bn = nn.Identity()
    for layer in (layer for layer in network.modules() if isinstance(layer, nn.Conv2d)):
        layer.weight.data = layer.weight.contiguous(memory_format=torch.channels_last)
    return network.requires_grad_(False)


def how_to_get() -> str:
    return (
        f"get {PUBLISHED} from the releases of mseitzer/pytorch-fid on GitHub, then: opensana "
        f"convert {PUBLISHED} inception --preset {INCEPTION_PRESET}"
    )

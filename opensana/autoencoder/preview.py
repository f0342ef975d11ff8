"""Latents to small pictures by one linear map, so that a drawing can be watched without a decoder.

A 3x3 convolution gives each latent cell S x S pixels, so the preview has S/F of the picture's side.
The map is fitted to an autoencoder by least squares, and its file lies beside the autoencoder's.

C latent channels, h w latent size, S pixels a cell and side, F compression.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from opensana.errors import WeightsError
from opensana.weights.safetensors import read_safetensors, write_safetensors

NAME = "preview"
PIXELS = 8
KERNEL = 3
RIDGE = 1e-5
"""Of the mean square of the inputs: keeps channels that hardly vary from large weights."""


@dataclass(frozen=True)
class Preview:
    """The map, from scaled latents to pixels in -1..1."""

    weight: Tensor  # [3 S S, C, 3, 3]
    bias: Tensor  # [3 S S]

    @torch.inference_mode()
    def __call__(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] to [B, 3, S h, S w]."""
        cells = F.conv2d(_padded(latents.float().cpu()), self.weight, self.bias)
        return F.pixel_shuffle(cells, self.pixels).clamp(-1, 1)

    @property
    def pixels(self) -> int:
        return int((len(self.bias) / 3) ** 0.5)

    @classmethod
    def read(cls, folder: Path, channels: int) -> Self | None:
        """That of an autoencoder's folder; None where it has none, WeightsError if it is broken."""
        file = folder / f"{NAME}.safetensors"
        if not file.is_file():
            return None
        state = {key: value.float() for key, value in read_safetensors(file).items()}
        try:
            found = cls(**state)
            wanted = (3 * found.pixels**2, channels, KERNEL, KERNEL)
            if found.weight.shape == wanted and found.bias.shape == wanted[:1]:
                return found
        except TypeError:  # other names
            pass
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        raise WeightsError(
            f"{file} is no preview of an autoencoder with {channels} channels, it holds {shapes}: "
            "delete it, or make it with `opensana preview`"
        )

    def write(self, folder: Path) -> Path:
        """preview.safetensors in float16, which is finer than 8-bit pixels show."""
        state = {"weight": self.weight.half(), "bias": self.bias.half()}
        return write_safetensors(state, folder, name=NAME)[0]


class PreviewFit:
    """Least squares over pairs of latents and pictures, as sums: any number of them fits."""

    def __init__(self, channels: int, pixels: int = PIXELS) -> None:
        self.channels, self.pixels = channels, pixels
        inputs = channels * KERNEL**2 + 1
        self.squares = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.products = torch.zeros(inputs, 3 * pixels**2, dtype=torch.float64)

    def add(self, latents: Tensor, pixels: Tensor) -> None:
        """Scaled latents [B, C, h, w] of pixels [B, 3, H, W] in -1..1."""
        inputs = F.unfold(_padded(latents.float()), KERNEL).transpose(1, 2)
        inputs = F.pad(inputs, (0, 1), value=1.0).flatten(0, 1).double()
        wanted = F.pixel_unshuffle(small(pixels, latents, self.pixels), self.pixels)
        outputs = wanted.flatten(2).transpose(1, 2).flatten(0, 1).double()
        self.squares += inputs.T @ inputs
        self.products += inputs.T @ outputs

    def solve(self) -> Preview:
        """The map with the least squared error."""
        ridge = RIDGE * self.squares.diagonal().mean() * torch.eye(len(self.squares)).double()
        found = torch.linalg.solve(self.squares + ridge, self.products).T.float()
        weight = found[:, :-1].reshape(-1, self.channels, KERNEL, KERNEL)
        return Preview(weight.contiguous(), found[:, -1].contiguous())


def small(pixels: Tensor, latents: Tensor, side: int) -> Tensor:
    """The picture [B, 3, H, W] in the size of its preview, [B, 3, S h, S w]."""
    height, width = latents.shape[-2:]
    return F.adaptive_avg_pool2d(pixels.float(), (side * height, side * width))


def _padded(latents: Tensor) -> Tensor:
    return F.pad(latents, (KERNEL // 2,) * 4, mode="replicate")

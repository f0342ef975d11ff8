"""Latents to images: all at once where memory allows, in bands of rows where it does not."""

import sys
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.streaming import decode_bands
from opensana.device import format_bytes, free_memory
from opensana.errors import ConfigError, NumericsError

FREE_SHARE = 0.8  # of the free memory: no plan is exact


def band_memory(
    autoencoder: Autoencoder,
    size: tuple[int, int, int],
    *,
    memory: int | None,
    notice: Callable[[str], None],
) -> int | None:
    """What decoding in bands may take, in bytes; None where latents of `size` fit at once.

    `size` is B, h, w. Without `memory` it is what is free on the device, and single rows are tried
    however little that is; RequestError where a given `memory` cannot hold them. `notice` gets one
    line where there will be bands.
    """
    batch, height, width = size
    one = decoder_chain(autoencoder, 1, height, width)
    whole = decoder_chain(autoencoder, batch, height, width).whole_memory
    if memory is None:
        memory = max(_free_memory(autoencoder.device), one.least_memory)
    if whole <= memory:
        return None
    rows = one.plan(memory).rows[-1]
    notice(
        f"decoding one picture at a time in bands of {rows} rows, to the same pixels: "
        f"at once it takes {format_bytes(whole)}, there are {format_bytes(memory)}"
    )
    return memory


def _free_memory(device: torch.device) -> int:
    try:
        return int(FREE_SHARE * free_memory(device))
    except ConfigError:  # where the system does not tell, nothing is limited
        return sys.maxsize


@torch.inference_mode()
def decode_images(
    autoencoder: Autoencoder, latent: Tensor, *, memory: int | None
) -> list[Image.Image]:
    """Scaled latents [B, C, h, w] to 8-bit images, with the memory that `band_memory` gave."""
    latent = latent.to(autoencoder.dtype)
    if memory is None:
        return to_images(autoencoder.decode(latent))
    return [_in_bands(autoencoder, one, memory) for one in latent.split(1)]


def _in_bands(autoencoder: Autoencoder, latent: Tensor, memory: int) -> Image.Image:
    levels = [to_levels(band) for band in decode_bands(autoencoder, latent, memory=memory)]
    return _image(torch.cat(levels, dim=2)[0])


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in -1..1 to 8-bit images; NaN is an error, never a black picture."""
    return [_image(one) for one in to_levels(pixels)]


def to_levels(pixels: Tensor) -> Tensor:
    """Pixels in -1..1 to bytes 0..255 of the same shape; NaN is an error."""
    pixels = pixels.float()
    if not torch.isfinite(pixels).all():
        raise NumericsError(
            "the decoded picture holds NaN or infinite values; try --dtype float32 "
            "(the autoencoder does not work in float16)"
        )
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)


def _image(levels: Tensor) -> Image.Image:
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())

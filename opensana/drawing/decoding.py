"""Latents to images and back, at once where memory allows, else in bands of rows."""

import sys
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.streaming import decode_bands, encode
from opensana.device import format_bytes, free_memory
from opensana.errors import ConfigError, OutOfMemory
from opensana.models.resolution_bins import Size
from opensana.pictures.pixels import joined, to_images, to_pixels
from opensana.pictures.resize import cover
from opensana.runtime.int8_decoder import decodes_in_8_bits
from opensana.runtime.shortage import attempt

FREE_SHARE = 0.8  # of the free memory: no plan is exact


def band_memory(
    autoencoder: Autoencoder,
    size: tuple[int, int, int],
    *,
    memory: int | None,
    notice: Callable[[str], None],
    room: int | None = None,
) -> int | None:
    """What decoding in bands may take, in bytes; None where latents of `size` fit at once.

    `size` is B, h, w. Without `memory` it is `room`, or what is free on the device, and single rows
    are tried however little that is; RequestError where a given `memory` cannot hold them. `notice`
    gets one line where there will be bands.
    """
    batch, height, width = size
    one = decoder_chain(autoencoder, 1, height, width)
    whole = decoder_chain(autoencoder, batch, height, width).one_band_memory
    if memory is None:
        memory = max(room or room_to_decode(autoencoder.device), one.least_memory)
    if whole <= memory:
        return None
    rows = one.plan(memory).rows[-1]
    same = "nearly the same pixels" if decodes_in_8_bits(autoencoder) else "the same pixels"
    notice(
        f"decoding one picture at a time in bands of {rows} rows, to {same}: "
        f"at once it takes {format_bytes(whole)}, there are {format_bytes(memory)}"
    )
    return memory


def room_to_decode(device: torch.device, then: Callable[[int], int] = int) -> int:
    """Bytes of a device that decoding may take: most of what is free, or will be `then`."""
    try:
        return int(FREE_SHARE * then(free_memory(device)))
    except ConfigError:  # where the system does not tell, nothing is limited
        return sys.maxsize


@torch.inference_mode()
def decode_images(
    autoencoder: Autoencoder,
    latent: Tensor,
    *,
    memory: int | None,
    size: Size | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Image.Image]:
    """Scaled latents [B, C, h, w] to 8-bit images, with the memory that `band_memory` gave.

    With a `size` the pictures are scaled and cut to it, else they have that of the latents. No plan
    is exact: where memory ends all the same, `notice` is told and bands of half the memory are
    tried. OutOfMemory where these are too much, or without `notice`.
    """
    latent = latent.to(autoencoder.dtype)

    def decoded() -> list[Image.Image]:
        return _decoded(autoencoder, latent, memory, size)

    images = attempt(decoded, autoencoder.device)
    if images is None and notice is not None:
        one = decoder_chain(autoencoder, 1, *latent.shape[-2:])
        before = one.one_band_memory if memory is None else memory
        less = min(before, room_to_decode(autoencoder.device)) // 2
        memory = max(less, one.least_memory)
        notice(
            "memory ended while decoding; once again, one picture at a time in bands of "
            f"{one.plan(memory).rows[-1]} rows"
        )
        images = attempt(decoded, autoencoder.device)
    if images is None:
        height, width = (side * autoencoder.compression for side in latent.shape[-2:])
        raise OutOfMemory(
            f"there is not enough memory to decode {len(latent)} x {width}x{height} pixels; try "
            "a smaller picture, or end what else uses the memory"
        )
    return images


def _decoded(
    autoencoder: Autoencoder, latent: Tensor, memory: int | None, size: Size | None
) -> list[Image.Image]:
    if memory is not None:
        return [_in_bands(autoencoder, one, memory, size) for one in latent.split(1)]
    if decodes_in_8_bits(autoencoder):  # where a batch's other rounding would grow to some levels
        pixels = torch.cat([autoencoder.decode(one) for one in latent.split(1)])
    else:
        pixels = autoencoder.decode(latent)
    return to_images(pixels if size is None else cover(pixels, *size))


def _in_bands(
    autoencoder: Autoencoder, latent: Tensor, memory: int, size: Size | None
) -> Image.Image:
    bands = decode_bands(autoencoder, latent, memory=memory)
    if size is None:
        return joined(bands)[0]
    return to_images(cover(torch.cat(list(bands), dim=2), *size))[0]


@torch.inference_mode()
def encode_image(autoencoder: Autoencoder, image: Image.Image, *, memory: int | None) -> Tensor:
    """An RGB image to its scaled latent [1, C, h, w] in float32; `memory` as in `decode_images`."""
    pixels = to_pixels(image).to(autoencoder.device, autoencoder.dtype)
    if memory is None:
        return autoencoder.encode(pixels).float()
    return encode(autoencoder, pixels, memory=memory).float()

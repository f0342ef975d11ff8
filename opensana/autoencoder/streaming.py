"""Encode and decode in bands of rows, in bounded memory, without seams.

The published way for large pictures is tiling with blended seams. It changes the result: linear
attention sees the whole picture, a tile only itself. But all that attention needs of the whole
picture is one small matrix per head (paper 2.2; layers/linear_attention.py). So each attention
block runs over its map twice in bands: one pass sums the matrix, one applies it. Convolutions need
a few neighbouring rows (bands.py), everything else works per position. The result equals that of
the plain forward up to the order of float sums.

Small maps run in one band, which is the plain forward. With more bands, queries, keys and values
are computed twice, and each layer computes 2 * halo rows per band twice.

B batch, C channels, H W picture size, h w latent size.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from opensana.autoencoder.bands import Layered, Rows, Stored
from opensana.autoencoder.blocks import MultiscaleLinearAttention
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import Chain, Pass, decoder_chain, encoder_chain
from opensana.errors import ConfigError, RequestError
from opensana.layers import AttentionState, attend, attention_state


@torch.no_grad()
def decode(autoencoder: Autoencoder, latent: Tensor, *, memory: int) -> Tensor:
    """Scaled latents [B, C, h, w] to pixels [B, 3, H, W], as `Autoencoder.decode`.

    Pictures are decoded one at a time, in at most about `memory` bytes beside the weights and the
    result; RequestError if even bands of one row need more.
    """
    size = autoencoder.compression
    batch, _, height, width = latent.shape
    channels = autoencoder.config.in_channels
    pixels = latent.new_empty(batch, channels, height * size, width * size)
    for out, one in zip(pixels.split(1), latent.split(1), strict=True):
        _fill(out, decode_bands(autoencoder, one, memory=memory))
    return pixels


@torch.no_grad()
def decode_bands(autoencoder: Autoencoder, latent: Tensor, *, memory: int) -> Iterator[Tensor]:
    """As `decode`, yielded as bands [B, 3, n, W] from top to bottom, all pictures at once."""
    _check_mode(autoencoder)
    batch, _, height, width = latent.shape
    chain = decoder_chain(autoencoder, batch, height, width)
    unscaled = latent / autoencoder.config.scaling_factor
    yield from run(chain, unscaled, chain.plan(memory).rows)


@torch.no_grad()
def encode(autoencoder: Autoencoder, pixels: Tensor, *, memory: int) -> Tensor:
    """Pixels [B, 3, H, W] to scaled latents [B, C, h, w], as `Autoencoder.encode`.

    Pictures are encoded one at a time; `memory` and errors are those of `decode`. H and W must be
    multiples of the compression.
    """
    _check_mode(autoencoder)
    size = autoencoder.compression
    batch, _, height, width = pixels.shape
    if height % size or width % size:
        raise RequestError(
            f"height and width must be multiples of {size} for this autoencoder, "
            f"got {height} x {width}"
        )
    channels = autoencoder.latent_channels
    latent = pixels.new_empty(batch, channels, height // size, width // size)
    chain = encoder_chain(autoencoder, 1, height, width)
    rows = chain.plan(memory).rows
    for out, one in zip(latent.split(1), pixels.split(1), strict=True):
        _fill(out, run(chain, one, rows))
    return latent.mul_(autoencoder.config.scaling_factor)


def _check_mode(autoencoder: Autoencoder) -> None:
    if autoencoder.training:
        raise ConfigError("bands would each get batch statistics of their own; call eval() first")


def run(chain: Chain, x: Tensor, rows: Sequence[int]) -> Iterator[Tensor]:
    """The output of the last pass in bands; `rows` is the height of an output band in each pass.

    The outputs of the other passes are stored; attention overwrites its input, band by band.
    """
    *inner, last = zip(chain.passes, rows, strict=True)
    for step, high in inner:
        shape = (len(x), step.channels, *(step.size(side) for side in x.shape[2:]))
        bands = _bands(step, high, x)
        if high >= shape[2]:
            x = next(bands)
        else:
            out = _empty(shape, x) if step.attention is None else x
            _fill(out, bands)
            x = out
    yield from _bands(*last, x)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A map to be filled, in the order in which the device's convolutions read it."""
    on_cuda = like.device.type == "cuda"
    order = torch.channels_last if on_cuda else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)


def _fill(out: Tensor, bands: Iterable[Tensor]) -> None:
    done = 0
    for band in bands:
        out[:, :, done : done + band.shape[2]] = band
        done += band.shape[2]


def _bands(step: Pass, rows: int, x: Tensor) -> Iterator[Tensor]:
    """The output of a pass in bands of `rows` rows."""
    layers = step.layers
    if step.attention is not None and rows < x.shape[2]:
        state = _state(step.attention, x, rows, halo=layers[0].halo)
        layers = (replace(layers[0], run=partial(_attend, step.attention, state)), *layers[1:])
    output: Rows = Stored(x)
    for layer in layers:
        output = Layered(layer, output)
    while output.done < output.height:
        yield output.take(min(rows, output.height - output.done))


def _state(
    attention: MultiscaleLinearAttention, x: Tensor, rows: int, *, halo: int
) -> AttentionState:
    """The attention state of a whole map, summed in bands of `rows` rows."""
    height, width = x.shape[2:]
    total: AttentionState | None = None
    for first in range(0, height, rows):
        top, end = max(first - halo, 0), min(first + rows, height)
        _, key, value = attention.project(x[:, :, top : end + halo])
        inside = slice((first - top) * width, (end - top) * width)
        state = attention_state(key[:, :, inside], value[:, :, inside])
        total = state if total is None else total + state
    assert total is not None
    return total


def _attend(attention: MultiscaleLinearAttention, state: AttentionState, x: Tensor) -> Tensor:
    """Attention on a band, given the state of the whole map."""
    query, _, value = attention.project(x)
    return attention.merge(x, attend(query, state).to(value.dtype))

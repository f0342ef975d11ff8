"""Encode and decode pictures in bands of rows, in bounded memory, to the same pixels.

The published way to decode large pictures is tiles blended at their seams. That is another
function: linear attention looks at the whole picture, a tile sees only itself. But its only look
at the whole is one small matrix a head (paper 2.2, equation 2). So every attention block runs over
its map twice in bands: one pass sums the matrix, one applies it. Convolutions need a few rows of
their neighbours (bands.py), everything else is per position. The result is that of the whole
network up to the order of float sums: no seams, nothing to blend.

Small maps take one band, which is the plain forward. Where there are more, queries, keys and
values are computed once more for the sum, and each layer runs 2 * halo rows a band twice.

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

    Pictures are decoded one at a time, with at most about `memory` bytes beside the weights and
    the result; RequestError where even bands of one row need more.
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
    """The pixels of one `decode` as bands [B, 3, n, W] from top to bottom, all pictures at once."""
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
    """The output of the last pass in bands; `rows` is the height of a band's output in each pass.

    What the other passes make is stored.
    """
    *inner, last = zip(chain.passes, rows, strict=True)
    for step, high in inner:
        x = _stored(step, high, x)
    yield from _bands(*last, x)


def _stored(step: Pass, rows: int, x: Tensor) -> Tensor:
    """The whole output of a pass. Attention's takes the place of its input, band by band."""
    shape = (len(x), step.channels, *(step.size(side) for side in x.shape[2:]))
    if rows >= shape[2]:
        return next(_bands(step, rows, x))
    out = x.new_empty(shape) if step.attention is None else x
    _fill(out, _bands(step, rows, x))
    return out


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
    """The sums over all positions of a map, in bands of `rows` rows."""
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
    """The attention block of a band, given the state of the whole map."""
    query, _, value = attention.project(x)
    return attention.merge(x, attend(query, state).to(value.dtype))

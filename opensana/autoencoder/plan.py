"""How many rows at a time the encoder or the decoder can run in a given memory.

The network is cut into passes. A pass reads a stored map, runs its layers in bands of rows and
stores their output. Cuts are at linear attention alone, which sums over the whole map before it
gives its first row; all convolutions between two attention blocks are one pass.

The memory of a pass is that of the stored maps it reads and writes, the rows that its layers keep
from band to band, and the working set of its hungriest layer. Weights, the result and a convolution
library's scratch space are not counted.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from opensana.autoencoder.bands import Layer
from opensana.autoencoder.blocks import (
    FFN_RATIO,
    EfficientViTBlock,
    MultiscaleLinearAttention,
    ResBlock,
)
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.resample import FACTOR, Downsample, Upsample
from opensana.device import format_bytes
from opensana.errors import RequestError

# Norms and attention sum in float32: in half precision the mean number of a working set is larger.
WORKING_BYTES = 3


def size_after(layers: Iterable[Layer], side: int) -> int:
    """Rows (or columns) that layers make of `side`."""
    for layer in layers:
        side = layer.size(side)
    return side


@dataclass(frozen=True)
class Shape:
    """A stack of maps of `itemsize` bytes a number; layers know their own channels."""

    batch: int
    height: int
    width: int
    itemsize: int

    def after(self, layers: Iterable[Layer]) -> "Shape":
        height, width = (size_after(layers, side) for side in (self.height, self.width))
        return Shape(self.batch, height, width, self.itemsize)

    def bytes(self, channels: int, rows: int | None = None) -> int:
        rows = self.height if rows is None else min(rows, self.height)
        return self.batch * channels * rows * self.width * self.itemsize


@dataclass(frozen=True)
class Pass:
    """Layers that run together, from one stored map to the next."""

    layers: tuple[Layer, ...]
    channels: int
    """Of the map that is stored; 0 for the last pass, whose bands are given away."""

    @property
    def attention(self) -> MultiscaleLinearAttention | None:
        """The attention that the pass begins with."""
        first = self.layers[0].run
        return first if isinstance(first, MultiscaleLinearAttention) else None

    def size(self, side: int) -> int:
        """Rows (or columns) of the output for those of the input."""
        return size_after(self.layers, side)

    def memory(self, shape: Shape, rows: int) -> int:
        """Peak bytes when the input is of `shape` and each band has `rows` output rows."""
        kept, working = 0, 0
        for index in reversed(range(len(self.layers))):
            layer, inside = self.layers[index], shape.after(self.layers[:index])
            asked = min(layer.end(rows), inside.height)
            run = inside.bytes(layer.working, asked + layer.halo)
            working = max(working, run * max(shape.itemsize, WORKING_BYTES) // shape.itemsize)
            kept += inside.bytes(layer.channels, 2 * layer.halo)
            rows = asked
        return self._stored(shape) + kept + working

    def _stored(self, shape: Shape) -> int:
        """Attention passes write over what they read."""
        read = shape.bytes(self.layers[0].channels)
        if self.attention is not None:
            return read
        return read + shape.after(self.layers).bytes(self.channels)


@dataclass(frozen=True)
class Plan:
    """Output rows of a band in each pass, and the peak bytes that this should take."""

    rows: tuple[int, ...]
    memory: int


@dataclass(frozen=True)
class Chain:
    """The passes of a network, and the shape of the input that it is to run on."""

    passes: tuple[Pass, ...]
    shape: Shape

    @property
    def least_memory(self) -> int:
        """Peak bytes with bands of one row."""
        return max(step.memory(shape, 1) for step, shape in self._shaped())

    @property
    def whole_memory(self) -> int:
        """Peak bytes with one band in each pass, which is the plain forward."""
        return max(step.memory(shape, step.size(shape.height)) for step, shape in self._shaped())

    def plan(self, memory: int) -> Plan:
        """The highest bands that fit; RequestError where even single rows do not."""
        if memory < self.least_memory:
            raise RequestError(
                f"{format_bytes(memory)} of memory cannot hold the feature maps of this picture, "
                f"which take at least {format_bytes(self.least_memory)} beside the weights; "
                "try more memory or a smaller picture"
            )
        rows = tuple(_rows(step, shape, memory) for step, shape in self._shaped())
        peaks = (
            step.memory(shape, high)
            for high, (step, shape) in zip(rows, self._shaped(), strict=True)
        )
        return Plan(rows, max(peaks))

    def _shaped(self) -> Iterator[tuple[Pass, Shape]]:
        """Each pass and the shape of its input."""
        shape = self.shape
        for step in self.passes:
            yield step, shape
            shape = shape.after(step.layers)


def _rows(step: Pass, shape: Shape, memory: int) -> int:
    """The rows of the fewest bands of about equal height."""
    height = step.size(shape.height)
    highest = bisect_right(range(1, height + 1), memory, key=partial(step.memory, shape))
    bands = math.ceil(height / highest)
    return math.ceil(height / bands)


# ------------------------------------------------------------------ the networks


def decoder_chain(autoencoder: Autoencoder, batch: int, height: int, width: int) -> Chain:
    """From unscaled latents of `height` x `width` to pixels."""
    decoder = autoencoder.decoder
    stem, head = decoder.conv_in, decoder.conv_out
    first = Layer(decoder.stem, stem.in_channels, 1, stem.in_channels + 3 * stem.out_channels)
    channels = len(decoder.norm_out.weight)
    last = Layer(decoder.head, channels, 1, 4 * channels)
    if isinstance(head, Upsample):
        working = max(last.working, layer_of(head).working)
        last = replace(last, working=working, up=FACTOR)
    blocks = [block for stage in reversed(decoder.up_blocks) for block in stage.children()]
    passes = _passes(first, blocks, last)
    return Chain(passes, Shape(batch, height, width, autoencoder.dtype.itemsize))


def encoder_chain(autoencoder: Autoencoder, batch: int, height: int, width: int) -> Chain:
    """From pixels of `height` x `width` to unscaled latents."""
    encoder = autoencoder.encoder
    stem, head = encoder.conv_in, encoder.conv_out
    if isinstance(stem, Downsample):
        first = layer_of(stem)
    else:
        first = Layer(stem, stem.in_channels, 1, stem.in_channels + 2 * stem.out_channels)
    last = Layer(encoder.head, head.in_channels, 1, 2 * head.in_channels + 4 * head.out_channels)
    blocks = [block for stage in encoder.down_blocks for block in stage.children()]
    passes = _passes(first, blocks, last)
    return Chain(passes, Shape(batch, height, width, autoencoder.dtype.itemsize))


def _passes(first: Layer, blocks: Iterable[nn.Module], last: Layer) -> tuple[Pass, ...]:
    groups: list[list[Layer]] = [[first]]
    for block in blocks:
        if isinstance(block, EfficientViTBlock):
            groups += [[attention_layer(block.attn), feed_forward_layer(block)], []]
        else:
            groups[-1].append(layer_of(block))
    groups[-1].append(last)
    groups = [group for group in groups if group]
    channels = [group[0].channels for group in groups[1:]] + [0]
    return tuple(Pass(tuple(group), made) for group, made in zip(groups, channels, strict=True))


def attention_layer(module: MultiscaleLinearAttention) -> Layer:
    """Queries, keys and values of each scale, twice while they are joined, rectified or divided."""
    channels = module.to_q.in_features
    scales = module.to_qkv_multiscale
    kernels = [conv.kernel_size[0] for conv in scales.modules() if isinstance(conv, nn.Conv2d)]
    halo = max(kernels, default=1) // 2
    return Layer(module, channels, halo, 8 * channels * (1 + len(scales)))


def feed_forward_layer(block: EfficientViTBlock) -> Layer:
    """Both halves before and after the depthwise convolution, and once as it reorders them."""
    channels = block.conv_out.conv_inverted.in_channels
    return Layer(block.conv_out, channels, 1, (1 + 6 * FFN_RATIO) * channels)


def layer_of(module: nn.Module) -> Layer:
    """A ResBlock or a resampling as a layer.

    Working sets count a convolution's input and output twice where it reorders them.
    """
    if isinstance(module, ResBlock):
        channels = module.conv1.in_channels
        return Layer(module, channels, 2, 5 * channels)
    if isinstance(module, Upsample):
        channels, pixels = module.conv.in_channels, FACTOR**2 * module.out
        enlarged = 0 if module.shuffle else 2 * FACTOR**2 * channels
        working = channels + max(enlarged, 2 * pixels) + pixels
        return Layer(module, channels, 1, working, up=FACTOR)
    assert isinstance(module, Downsample)
    channels = module.conv.in_channels
    # Its halo is 1, but bands must begin where a pair of rows does.
    return Layer(module, channels, FACTOR, 2 * channels + module.out, down=FACTOR)

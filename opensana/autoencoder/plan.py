"""How high a band of rows can be for the encoder or decoder to run in a given memory.

The network is cut into passes. A pass reads a stored map, runs its layers in bands of rows and
stores the output. Cuts are only at linear attention, which sums over the whole map before its first
output row; all convolutions between two attention blocks are one pass.

A pass needs memory for the maps it reads and writes, the rows that its layers keep between bands,
and the largest working set of a layer. Weights, the final result and a convolution library's
workspace are not counted.
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

# Norms and attention work in float32, so a half-precision working set averages 3 bytes a value.
WORKING_BYTES = 3


def size_after(layers: Iterable[Layer], side: int) -> int:
    """Rows (or columns) after the layers, from `side` before them."""
    for layer in layers:
        side = layer.size(side)
    return side


@dataclass(frozen=True)
class Shape:
    """The shape of a batch of maps without channels, and the bytes per value."""

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
    """Channels of the stored output; 0 for the last pass, whose bands are yielded."""

    @property
    def attention(self) -> MultiscaleLinearAttention | None:
        """The attention at the start of the pass, or None."""
        first = self.layers[0].run
        return first if isinstance(first, MultiscaleLinearAttention) else None

    def size(self, side: int) -> int:
        """Rows (or columns) of the output for those of the input."""
        return size_after(self.layers, side)

    def memory(self, shape: Shape, rows: int) -> int:
        """Peak bytes for an input of `shape` and bands of `rows` output rows."""
        kept, working = 0, 0
        for index in reversed(range(len(self.layers))):
            layer, inside = self.layers[index], shape.after(self.layers[:index])
            asked = min(layer.end(rows), inside.height)
            run = inside.bytes(layer.working, asked + layer.halo)
            working = max(working, run * max(shape.itemsize, WORKING_BYTES) // shape.itemsize)
            kept += inside.bytes(layer.channels, 2 * layer.halo)
            rows = asked
        stored = shape.bytes(self.layers[0].channels)
        if self.attention is None:  # attention overwrites its input
            stored += shape.after(self.layers).bytes(self.channels)
        return stored + kept + working


@dataclass(frozen=True)
class Plan:
    """The height of an output band in each pass, and the expected peak bytes."""

    rows: tuple[int, ...]
    memory: int


@dataclass(frozen=True)
class Chain:
    """The passes of a network, and the shape of its input."""

    passes: tuple[Pass, ...]
    shape: Shape

    @property
    def least_memory(self) -> int:
        """Peak bytes with bands of one row."""
        return max(step.memory(shape, 1) for step, shape in self._shaped())

    @property
    def one_band_memory(self) -> int:
        """Peak bytes with one band per pass, which is the plain forward."""
        return max(step.memory(shape, step.size(shape.height)) for step, shape in self._shaped())

    def plan(self, memory: int) -> Plan:
        """The highest bands that fit; RequestError if not even single rows do."""
        if memory < self.least_memory:
            raise RequestError(
                f"{format_bytes(memory)} of memory cannot hold the feature maps of this picture, "
                f"which take at least {format_bytes(self.least_memory)} beside the weights; "
                "try more memory or a smaller picture"
            )
        rows, peak = [], 0
        for step, shape in self._shaped():
            height = step.size(shape.height)
            highest = bisect_right(range(1, height + 1), memory, key=partial(step.memory, shape))
            bands = math.ceil(height / highest)  # as few as fit, of about equal height
            rows.append(math.ceil(height / bands))
            peak = max(peak, step.memory(shape, rows[-1]))
        return Plan(tuple(rows), peak)

    def _shaped(self) -> Iterator[tuple[Pass, Shape]]:
        """Each pass and the shape of its input."""
        shape = self.shape
        for step in self.passes:
            yield step, shape
            shape = shape.after(step.layers)


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
    """Working set: queries, keys and values of each scale, twice during cat, ReLU and division."""
    channels = module.to_out.out_features
    scales = module.to_qkv_multiscale
    kernels = [conv.kernel_size[0] for conv in scales.modules() if isinstance(conv, nn.Conv2d)]
    halo = max(kernels, default=1) // 2
    return Layer(module, channels, halo, 8 * channels * (1 + len(scales)))


def feed_forward_layer(block: EfficientViTBlock) -> Layer:
    """Working set: both halves before, after and reordered for the depthwise convolution."""
    channels = block.attn.to_out.out_features
    return Layer(block.conv_out, channels, 1, (1 + 6 * FFN_RATIO) * channels)


def layer_of(module: nn.Module) -> Layer:
    """A ResBlock, Upsample or Downsample as a layer.

    Working sets count a convolution's input and output twice if it reorders them.
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
    # The halo is 1, but bands must start at even rows.
    return Layer(module, channels, FACTOR, 2 * channels + module.out, down=FACTOR)

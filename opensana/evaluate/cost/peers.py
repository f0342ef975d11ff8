"""What one forward pass of other text-to-image networks multiplies, from their published shapes.

Each family is a function of a configuration, a size and its text: a few lines of linear layers,
convolutions and attentions. Tests compare them with the classes of diffusers. Biases are counted,
norms and tables of positions are not: they are less than a thousandth of the parameters.

Tokens are those of the image; a size is the side of a square picture in pixels.
"""

from dataclasses import dataclass

from opensana.evaluate.cost.sheet import Sheet, attention, convolution, linear

SINUSOIDS = 256
"""Width of the sinusoidal embedding of a timestep, before its two linear layers."""
COMPRESSION = 8
"""Of the peers' autoencoders; two latent positions a side make a token."""
PATCH = 4
"""Latent positions of a token."""


def tokens_of(size: int) -> int:
    return (size // COMPRESSION // 2) ** 2


def _two_layers(tokens: int, inner: int, middle: int, outer: int) -> Sheet:
    return linear(tokens, inner, middle) + linear(tokens, middle, outer)


def _feed_forward(tokens: int, width: int, ratio: float = 4) -> Sheet:
    return _two_layers(tokens, width, int(width * ratio), width)


def _projections(tokens: int, width: int) -> Sheet:
    """Queries, keys, values and output."""
    return linear(tokens, width, width).times(4)


def _self_attention(tokens: int, width: int) -> Sheet:
    return _projections(tokens, width) + attention(tokens, tokens, width)


def _cross_attention(tokens: int, text: int, width: int, text_width: int) -> Sheet:
    """Queries and output of the image, keys and values of the text."""
    own, others = linear(tokens, width, width), linear(text, text_width, width)
    return own.times(2) + others.times(2) + attention(tokens, text, width)


def _time(width: int) -> Sheet:
    """The embedding of a timestep."""
    return _two_layers(1, SINUSOIDS, width, width)


def _last_layer(tokens: int, width: int, channels: int) -> Sheet:
    """Scale and shift from the timestep, then the channels of each token's patch."""
    return linear(1, width, 2 * width) + linear(tokens, width, PATCH * channels)


@dataclass(frozen=True)
class Flux:
    """FLUX.1: blocks with a stream for each of text and image, then blocks of one stream."""

    double: int = 19
    single: int = 38
    width: int = 3072
    latent: int = 16
    text_width: int = 4096
    pooled: int = 768
    guidance: bool = True

    def double_block(self, tokens: int, text: int) -> Sheet:
        streams = Sheet()
        for count in (tokens, text):
            streams += linear(1, self.width, 6 * self.width)
            streams += _projections(count, self.width) + _feed_forward(count, self.width)
        return streams + attention(tokens + text, tokens + text, self.width)

    def single_block(self, tokens: int, text: int) -> Sheet:
        both, width = tokens + text, self.width
        return (
            linear(1, width, 3 * width)
            + linear(both, width, width).times(3)
            + linear(both, width, 4 * width)
            + linear(both, 5 * width, width)
            + attention(both, both, width)
        )

    def forward(self, size: int, text: int) -> Sheet:
        tokens, width = tokens_of(size), self.width
        return (
            linear(tokens, PATCH * self.latent, width)
            + linear(text, self.text_width, width)
            + _time(width).times(1 + self.guidance)
            + _two_layers(1, self.pooled, width, width)
            + self.double_block(tokens, text).times(self.double)
            + self.single_block(tokens, text).times(self.single)
            + _last_layer(tokens, width, self.latent)
        )


@dataclass(frozen=True)
class StableDiffusion3:
    """MM-DiT: text and image in streams of their own; the last block drops the text's."""

    blocks: int = 24
    width: int = 1536
    latent: int = 16
    text_width: int = 4096
    pooled: int = 2048

    def block(self, tokens: int, text: int, *, last: bool = False) -> Sheet:
        width = self.width
        image = linear(1, width, 6 * width) + _projections(tokens, width)
        image += _feed_forward(tokens, width) + attention(tokens + text, tokens + text, width)
        if last:
            return image + linear(1, width, 2 * width) + linear(text, width, width).times(3)
        words = linear(1, width, 6 * width) + _projections(text, width)
        return image + words + _feed_forward(text, width)

    def forward(self, size: int, text: int) -> Sheet:
        tokens, width = tokens_of(size), self.width
        return (
            convolution(tokens, self.latent, width, 2, stride=2)
            + linear(text, self.text_width, width)
            + _time(width)
            + _two_layers(1, self.pooled, width, width)
            + self.block(tokens, text).times(self.blocks - 1)
            + self.block(tokens, text, last=True)
            + _last_layer(tokens, width, self.latent)
        )


@dataclass(frozen=True)
class PixArt:
    """DiT with cross-attention and one modulation for all blocks; alpha and Sigma are alike."""

    blocks: int = 28
    width: int = 1152
    latent: int = 4
    text_width: int = 4096

    def block(self, tokens: int, text: int) -> Sheet:
        width = self.width
        return (
            _self_attention(tokens, width)
            + _cross_attention(tokens, text, width, width)
            + _feed_forward(tokens, width)
        )

    def forward(self, size: int, text: int) -> Sheet:
        tokens, width = tokens_of(size), self.width
        return (
            convolution(tokens, self.latent, width, 2, stride=2)
            + _time(width)
            + linear(1, width, 6 * width)
            + _two_layers(text, self.text_width, width, width)
            + self.block(tokens, text).times(self.blocks)
            + linear(tokens, width, PATCH * 2 * self.latent)  # the variance too, which is dropped
        )


@dataclass(frozen=True)
class HunyuanDiT:
    """DiT with cross-attention to two text encoders, and long skips into its second half."""

    blocks: int = 40
    width: int = 1408
    ratio: float = 4.3637
    latent: int = 4
    text_width: int = 1024
    t5_width: int = 2048
    t5_tokens: int = 256

    def block(self, tokens: int, text: int, *, skip: bool = False) -> Sheet:
        width = self.width
        block = (
            linear(1, width, width)
            + _self_attention(tokens, width)
            + _cross_attention(tokens, text, width, self.text_width)
            + _feed_forward(tokens, width, self.ratio)
        )
        return block + linear(tokens, 2 * width, width) if skip else block

    def forward(self, size: int, text: int) -> Sheet:
        """`text` counts the tokens of both encoders."""
        tokens, width, t5 = tokens_of(size), self.width, self.t5_tokens
        pooled = linear(t5 + 1, self.t5_width, self.t5_width).times(2)
        pooled += linear(1, self.t5_width, self.t5_width) + attention(1, t5 + 1, self.t5_width)
        pooled += linear(1, self.t5_width, self.text_width)
        conditions = 6 * SINUSOIDS + width + self.text_width
        skips = self.blocks - self.blocks // 2 - 1
        return (
            convolution(tokens, self.latent, width, 2, stride=2)
            + _two_layers(t5, self.t5_width, 4 * self.t5_width, self.text_width)
            + _time(width)
            + pooled
            + _two_layers(1, conditions, 4 * width, width)
            + self.block(tokens, text).times(self.blocks - skips)
            + self.block(tokens, text, skip=True).times(skips)
            + _last_layer(tokens, width, 2 * self.latent)
        )


@dataclass(frozen=True)
class LuminaNext:
    """Next-DiT: grouped keys and values, SwiGLU; both attentions share one output projection."""

    blocks: int = 24
    width: int = 2304
    heads: int = 32
    key_heads: int = 8
    multiple: int = 256
    latent: int = 4
    text_width: int = 2048

    @property
    def condition(self) -> int:
        return min(self.width, 1024)

    def block(self, tokens: int, text: int) -> Sheet:
        width, keys = self.width, self.width // self.heads * self.key_heads
        hidden = -(-int(8 * width / 3) // self.multiple) * self.multiple

        def matrix(count: int, inner: int, outer: int) -> Sheet:
            return linear(count, inner, outer, bias=False)

        return (
            linear(1, self.condition, 4 * width)
            + matrix(tokens, width, width).times(3)
            + matrix(tokens, width, keys).times(2)
            + matrix(text, self.text_width, keys).times(2)
            + attention(tokens, tokens, width, key_width=keys)
            + attention(tokens, text, width, key_width=keys)
            + matrix(tokens, width, hidden).times(2)
            + matrix(tokens, hidden, width)
        )

    def forward(self, size: int, text: int) -> Sheet:
        tokens, width = tokens_of(size), self.width
        return (
            linear(tokens, PATCH * self.latent, width)
            + _two_layers(1, SINUSOIDS, self.condition, self.condition)
            + linear(1, self.text_width, self.condition)
            + self.block(tokens, text).times(self.blocks)
            + linear(1, self.condition, width)
            + linear(tokens, width, PATCH * 2 * self.latent)
        )

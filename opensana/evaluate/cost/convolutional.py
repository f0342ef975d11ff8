"""SDXL's U-Net, and the decoder of the autoencoders that compress by 8 (KL).

Both are stages of residual blocks, each at its own resolution. A size is the side of a square
picture in pixels.
"""

from dataclasses import dataclass

from opensana.evaluate.cost.peers import COMPRESSION
from opensana.evaluate.cost.sheet import Sheet, attention, convolution, linear


def _residual(positions: int, inner: int, outer: int, time: int = 0) -> Sheet:
    block = convolution(positions, inner, outer, 3) + convolution(positions, outer, outer, 3)
    if time:
        block += linear(1, time, outer)
    return block if inner == outer else block + convolution(positions, inner, outer, 1)


@dataclass(frozen=True)
class UNet:
    """SDXL's and Playground 2.5's; transformers of so many layers follow residual blocks."""

    widths: tuple[int, ...] = (320, 640, 1280)
    transformers: tuple[int, ...] = (0, 2, 10)
    residuals: int = 2
    latent: int = 4
    text_width: int = 2048
    pooled: int = 2816

    def transformer(self, tokens: int, text: int, width: int, layers: int) -> Sheet:
        def matrix(count: int, inner: int, outer: int) -> Sheet:
            return linear(count, inner, outer, bias=False)

        layer = (
            matrix(tokens, width, width).times(4)
            + attention(tokens, tokens, width)
            + matrix(text, self.text_width, width).times(2)
            + attention(tokens, text, width)
            + linear(tokens, width, width).times(2)
            + linear(tokens, width, 8 * width)
            + linear(tokens, 4 * width, width)
        )
        ends = linear(tokens, width, width).times(2)
        return ends + layer.times(layers) if layers else Sheet()

    def forward(self, size: int, text: int) -> Sheet:
        first, time = self.widths[0], 4 * self.widths[0]
        side = size // COMPRESSION
        positions = [(side >> level) ** 2 for level in range(len(self.widths))]
        total = convolution(positions[0], self.latent, first, 3)
        total += linear(1, first, time) + linear(1, time, time)
        total += linear(1, self.pooled, time) + linear(1, time, time)
        kept, width, last = [first], first, len(self.widths) - 1
        for level, (outer, layers) in enumerate(zip(self.widths, self.transformers, strict=True)):
            for _ in range(self.residuals):
                total += _residual(positions[level], width, outer, time)
                total += self.transformer(positions[level], text, outer, layers)
                width = outer
                kept.append(width)
            if level < last:
                total += convolution(positions[level + 1], width, width, 3, stride=2)
                kept.append(width)
        total += _residual(positions[last], width, width, time).times(2)
        total += self.transformer(positions[last], text, width, self.transformers[last])
        for level in range(last, -1, -1):
            outer = self.widths[level]
            for _ in range(self.residuals + 1):
                total += _residual(positions[level], width + kept.pop(), outer, time)
                total += self.transformer(positions[level], text, outer, self.transformers[level])
                width = outer
            if level:
                total += convolution(positions[level - 1], width, width, 3)
        return total + convolution(positions[0], width, self.latent, 3)


@dataclass(frozen=True)
class KlDecoder:
    """The decoder of f8c4 and f8c16; its attention has one head over all latent positions."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    residuals: int = 3
    latent: int = 4
    mixes: bool = True
    """Whether a 1x1 convolution comes first."""

    def decode(self, size: int) -> Sheet:
        positions, width = (size // COMPRESSION) ** 2, self.widths[-1]
        total = convolution(positions, self.latent, width, 3)
        if self.mixes:
            total += convolution(positions, self.latent, self.latent, 1)
        total += _residual(positions, width, width).times(2)
        total += linear(positions, width, width).times(4) + attention(positions, positions, width)
        for level, outer in enumerate(reversed(self.widths)):
            if level:
                positions *= 4
                total += convolution(positions, width, width, 3)
            for _ in range(self.residuals):
                total += _residual(positions, width, outer)
                width = outer
        return total + convolution(positions, width, 3, 3)

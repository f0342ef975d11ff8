"""What the headline measures: a block of each network, attention alone, and both decoders.

Everything has random weights in the published shape, batch 1, float32. A name stands for a function
of a size in pixels that gives what runs once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peer_blocks import (
    DoubleBlock,
    PixArtBlock,
    SingleBlock,
    rotary_turns,
    softmax_attention,
)
from opensana.autoencoder import Autoencoder
from opensana.evaluate.cost.catalogue import PAINTERS
from opensana.evaluate.cost.peers import Flux, PixArt, StableDiffusion3, tokens_of
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.transformer.block import Block

FLUX_HEADS, SD3_HEADS, PIXART_HEADS = 24, 24, 16

Call = Callable[[], object]
Side = tuple[nn.Module, Callable[[int], Call]]
"""A network, and for a size in pixels what runs it once."""


@dataclass(frozen=True)
class Part:
    """Blocks of one kind: of which model, how many, and how one is built."""

    model: str
    count: int
    build: Callable[[], Side]
    attention: str | None = None
    """The name of its softmax attention alone; ours has none."""


@dataclass(frozen=True)
class Attention:
    """Self-attention of a block: `heads` of so many channels over its image and text tokens."""

    heads: int
    channels: int
    text: int

    def tokens(self, size: int) -> int:
        return tokens_of(size) + self.text

    def call(self, size: int, some: int) -> Call:
        """Attention with some of the heads, which all take the same time."""
        queries, keys, values = torch.randn(3, 1, some, self.tokens(size), self.channels)
        return lambda: softmax_attention(queries, keys, values)


def words(model: str, width: int) -> Tensor:
    """A text as the model's blocks see it, [1, M, C]."""
    return torch.randn(1, PAINTERS[model].text_tokens, width)


def flux_double(width: int = Flux().width, heads: int = FLUX_HEADS) -> Side:
    block = DoubleBlock(width, heads, normed=True)

    def call(size: int) -> Call:
        tokens, text = torch.randn(1, tokens_of(size), width), words("flux-dev", width)
        turns = rotary_turns(tokens.shape[1] + text.shape[1], width // heads)
        condition = torch.randn(1, width)
        return lambda: block(tokens, text, condition, turns)

    return block, call


def flux_single(width: int = Flux().width, heads: int = FLUX_HEADS) -> Side:
    block = SingleBlock(width, heads)

    def call(size: int) -> Call:
        count = tokens_of(size) + PAINTERS["flux-dev"].text_tokens
        tokens, condition = torch.randn(1, count, width), torch.randn(1, width)
        turns = rotary_turns(count, width // heads)
        return lambda: block(tokens, condition, turns)

    return block, call


def sd3() -> Side:
    width = StableDiffusion3().width
    block = DoubleBlock(width, SD3_HEADS, normed=False)

    def call(size: int) -> Call:
        tokens, condition = torch.randn(1, tokens_of(size), width), torch.randn(1, width)
        text = words("sd3-medium", width)
        return lambda: block(tokens, text, condition)

    return block, call


def pixart() -> Side:
    width = PixArt().width
    block = PixArtBlock(width, PIXART_HEADS)

    def call(size: int) -> Call:
        tokens, modulation = torch.randn(1, tokens_of(size), width), torch.randn(1, 6, width)
        text = words("pixart-sigma", width)
        return lambda: block(tokens, modulation, text)

    return block, call


def sana(name: str, preset: str) -> Part:
    """Ours; as the others, a block projects its text's keys and values at each call."""
    config = transformer_preset(preset)

    def build() -> Side:
        block, width = Block(config), config.width

        def call(size: int) -> Call:
            side = size // 32
            tokens, modulation = torch.randn(1, side * side, width), torch.randn(1, 6, width)
            text = words(name, width)
            return lambda: block(tokens, modulation, text, None, (side, side))

        return block, call

    return Part(name, config.num_layers, build)


PARTS = {
    "flux-dev.double": Part("flux-dev", Flux().double, flux_double, "flux-dev.attention"),
    "flux-dev.single": Part("flux-dev", Flux().single, flux_single, "flux-dev.attention"),
    "sd3-medium.block": Part("sd3-medium", StableDiffusion3().blocks, sd3, "sd3-medium.attention"),
    "pixart-sigma.block": Part("pixart-sigma", PixArt().blocks, pixart, "pixart-sigma.attention"),
    "sana-0.6b.block": sana("sana-0.6b", "sana_600m_1024"),
    "sana-1.6b.block": sana("sana-1.6b", "sana_1600m_1024"),
}
ATTENTIONS = {
    "flux-dev.attention": Attention(FLUX_HEADS, 128, PAINTERS["flux-dev"].text_tokens),
    "sd3-medium.attention": Attention(SD3_HEADS, 64, PAINTERS["sd3-medium"].text_tokens),
    "pixart-sigma.attention": Attention(PIXART_HEADS, 72, 0),
}


def our_decoder() -> Side:
    model = Autoencoder(autoencoder_preset("dc_ae_f32c32_sana_1_1"))

    def call(size: int) -> Call:
        latent = torch.randn(1, model.latent_channels, size // 32, size // 32)
        return lambda: model.decode(latent)

    return model, call


def peers_decoder() -> Side:
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    config: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    model: Any = AutoencoderKL(**config)

    def call(size: int) -> Call:
        latent = torch.randn(1, config["latent_channels"], size // 8, size // 8)
        return lambda: model.decode(latent)

    return model, call


DECODERS = {"ours": our_decoder, "peer": peers_decoder}
"""By the kind of the models that they belong to."""

"""DC-AE: images to latents with 32 times fewer rows and columns, and back (paper 2.1).

The module names are the state-dict keys of the published diffusers files.

B batch, C channels, H W picture size, h w latent size (H = compression * h).
"""

import torch
from torch import Tensor, nn

from opensana.autoencoder.blocks import ACTIVATIONS, EfficientViTBlock, ResBlock
from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.resample import (
    Downsample,
    Upsample,
    average_channels,
    repeat_channels,
)
from opensana.layers import RMSNorm2d


class Autoencoder(nn.Module):
    """Deterministic encoder and decoder; only here is the latent scale applied."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def compression(self) -> int:
        return self.config.compression

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1 to scaled latents [B, C, h, w] of about unit variance."""
        return self.encoder(pixels) * self.config.scaling_factor

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latents [B, C, h, w] to pixels [B, 3, H, W], about -1..1, not clamped."""
        return self.decoder(latent / self.config.scaling_factor)

    def forward(self, pixels: Tensor) -> Tensor:
        """The reconstruction of pixels [B, 3, H, W]."""
        return self.decoder(self.encoder(pixels))


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to unscaled latents [B, C, h, w], finest stage first."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, layers = config.encoder_block_out_channels, config.encoder_layers_per_block
        down = config.downsample_block_type
        if layers[0] > 0:
            self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        else:
            self.conv_in = Downsample(config.in_channels, widths[1], kind=down, shortcut=False)
        self.down_blocks = nn.ModuleList()
        for stage, width in enumerate(widths):
            blocks = encoder_blocks(config, stage)
            if blocks and stage < len(widths) - 1:
                blocks.append(Downsample(width, widths[stage + 1], kind=down))
            self.down_blocks.append(nn.Sequential(*blocks))
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.shortcut = config.encoder_out_shortcut

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)
        for stage in self.down_blocks:
            x = stage(x)
        return self.head(x)

    def head(self, x: Tensor) -> Tensor:
        """The last stage's output to latents."""
        latent = self.conv_out(x)
        return latent + average_channels(x, latent.shape[1]) if self.shortcut else latent


class Decoder(nn.Module):
    """Unscaled latents [B, C, h, w] to pixels [B, 3, H, W], coarsest stage first."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, layers = config.decoder_block_out_channels, config.decoder_layers_per_block
        up = config.upsample_block_type
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.shortcut = config.decoder_in_shortcut
        self.up_blocks = nn.ModuleList()
        for stage, width in enumerate(widths):
            blocks = decoder_blocks(config, stage)
            if blocks and stage < len(widths) - 1:
                blocks.insert(0, Upsample(widths[stage + 1], width, kind=up))
            self.up_blocks.append(nn.Sequential(*blocks))
        head = widths[0] if layers[0] > 0 else widths[1]
        self.norm_out = RMSNorm2d(head)
        self.activation = ACTIVATIONS[config.decoder_conv_act_fn]()
        if layers[0] > 0:
            self.conv_out = nn.Conv2d(head, config.in_channels, 3, padding=1)
        else:
            self.conv_out = Upsample(head, config.in_channels, kind=up, shortcut=False)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.stem(latent)
        for stage in reversed(self.up_blocks):
            x = stage(x)
        return self.head(x)

    def stem(self, latent: Tensor) -> Tensor:
        """Latents to the input of the last stage."""
        x = self.conv_in(latent)
        return x + repeat_channels(latent, x.shape[1]) if self.shortcut else x

    def head(self, x: Tensor) -> Tensor:
        """The first stage's output to pixels."""
        return self.conv_out(self.activation(self.norm_out(x)))


def encoder_blocks(config: AutoencoderConfig, stage: int) -> list[nn.Module]:
    """The blocks of an encoder stage, without its downsampling."""
    width = config.encoder_block_out_channels[stage]
    count = config.encoder_layers_per_block[stage]
    if config.encoder_block_types[stage] == "ResBlock":
        return [ResBlock(width, norm="rms_norm", activation="silu") for _ in range(count)]
    kernels = config.encoder_qkv_multiscales[stage]
    head = config.attention_head_dim
    return [
        EfficientViTBlock(width, head=head, kernels=kernels, norm="rms_norm") for _ in range(count)
    ]


def decoder_blocks(config: AutoencoderConfig, stage: int) -> list[nn.Module]:
    """The blocks of a decoder stage, without its upsampling."""
    width = config.decoder_block_out_channels[stage]
    count = config.decoder_layers_per_block[stage]
    norm = config.decoder_norm_types[stage]
    if config.decoder_block_types[stage] == "ResBlock":
        activation = config.decoder_act_fns[stage]
        return [ResBlock(width, norm=norm, activation=activation) for _ in range(count)]
    kernels = config.decoder_qkv_multiscales[stage]
    head = config.attention_head_dim
    return [EfficientViTBlock(width, head=head, kernels=kernels, norm=norm) for _ in range(count)]

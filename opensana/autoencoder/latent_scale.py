"""Scale each latent channel, exactly, by a change of the weights.

Flow matching weights all channels equally, but they matter differently to the picture: a channel
that moves many pixels should be large, so that noise hides it last and its error counts most. The
published format has one scale for all channels. Here the encoder's last convolution multiplies by
a scale per channel, the decoder's first divides by it, and the centres of both convolutions correct
the parameter-free shortcuts. The reconstruction does not change.

K latent channels.
"""

import torch
from torch import Tensor

from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.resample import average_channels, repeat_channels


@torch.no_grad()
def channel_gains(model: Autoencoder, pixels: Tensor, *, step: float = 0.5) -> Tensor:
    """Root mean square change of the picture when a channel changes by its std, [K]."""
    latent = model.encoder(pixels)
    plain = model.decoder(latent)
    deviations = latent.std(dim=(0, 2, 3))
    gains = torch.empty_like(deviations)
    for channel, deviation in enumerate(deviations):
        moved = latent.clone()
        moved[:, channel] += step * deviation
        gains[channel] = (model.decoder(moved) - plain).square().mean().sqrt() / step
    return gains


@torch.no_grad()
def scale_channels(model: Autoencoder, scale: Tensor) -> None:
    """Multiply latent channel k by `scale` [K] in the encoder, and divide by it in the decoder."""
    encoder_out, decoder_in = model.encoder.conv_out, model.decoder.conv_in
    assert encoder_out.bias is not None
    encoder_out.weight.mul_(scale[:, None, None, None])
    encoder_out.bias.mul_(scale)
    if model.encoder.shortcut:
        channels = torch.eye(encoder_out.in_channels)[:, :, None, None]
        shortcut = average_channels(channels, len(scale))[:, :, 0, 0].T
        encoder_out.weight[:, :, 1, 1] += (scale - 1)[:, None] * shortcut
    decoder_in.weight.div_(scale[:, None, None])
    if model.decoder.shortcut:
        channels = torch.eye(len(scale))[:, :, None, None]
        shortcut = repeat_channels(channels, decoder_in.out_channels)[:, :, 0, 0].T
        decoder_in.weight[:, :, 1, 1] += shortcut * (1 / scale - 1)

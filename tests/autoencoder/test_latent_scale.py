"""A scale for each latent channel changes the latents by just that, and the pictures not at all."""

import torch

from opensana.autoencoder import Autoencoder
from opensana.autoencoder.latent_scale import channel_gains, scale_channels
from tests.autoencoder.test_principal import SMALL


@torch.no_grad()
def test_scaling_is_exact() -> None:
    torch.manual_seed(0)
    model = Autoencoder(SMALL).eval()
    pixels = torch.randn(2, 3, 32, 48)
    latent, picture = model.encode(pixels), model(pixels)
    scale = torch.rand(8) + 0.5
    scale_channels(model, scale)
    assert torch.allclose(model.encode(pixels), latent * scale[:, None, None], atol=1e-5)
    assert torch.allclose(model(pixels), picture, atol=1e-5 * picture.abs().max().item())


@torch.no_grad()
def test_gains_follow_the_scale_of_the_decoder() -> None:
    """Halving how much the decoder listens to a channel halves its gain."""
    torch.manual_seed(0)
    model = Autoencoder(SMALL).eval()
    pixels = torch.randn(2, 3, 32, 32)
    before = channel_gains(model, pixels, step=1e-2)
    scale_channels(model, torch.full((8,), 3.0))
    assert torch.allclose(channel_gains(model, pixels, step=1e-2), before, rtol=1e-2)

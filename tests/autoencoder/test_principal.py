"""An autoencoder that starts as principal components computes them."""

from dataclasses import replace

import pytest
import torch

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.autoencoder.principal import PrincipalCode, principal_code, start_from
from opensana.errors import ConfigError

SMALL = AutoencoderConfig(
    latent_channels=8,
    attention_head_dim=16,
    encoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(16, 16, 64, 64),
    decoder_block_out_channels=(16, 16, 64, 64),
    encoder_layers_per_block=(0, 1, 1, 1),
    decoder_layers_per_block=(0, 1, 1, 1),
    encoder_qkv_multiscales=((), (), (), (5,)),
    decoder_qkv_multiscales=((), (), (), ()),
    downsample_block_type="Conv",
    upsample_block_type="pixel_shuffle",
    decoder_norm_types=("rms_norm",) * 4,
    decoder_act_fns=("silu",) * 4,
    scaling_factor=1.0,
)


def patches_and_code() -> tuple[torch.Tensor, PrincipalCode]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 3 * 8 * 8, generator=generator) * 0.1
    patches = (torch.randn(600, 12, generator=generator) @ mixing + 0.2).view(-1, 3, 8, 8)
    return patches, principal_code(patches, 8)


@torch.no_grad()
def test_encoder_gives_whitened_coordinates_and_decoder_their_picture() -> None:
    patches, code = patches_and_code()
    model = Autoencoder(SMALL)
    start_from(model, code)
    analysis = code.basis.flatten(1)
    expected = (patches - code.mean).flatten(1) @ analysis.T / code.deviation

    latent = model.encode(patches)
    assert torch.allclose(latent.flatten(1), expected, atol=1e-3)
    assert torch.allclose(latent.std(dim=0), torch.ones(8, 1, 1), atol=0.01)

    linear = (expected * code.deviation) @ analysis + code.mean.flatten()
    error = (model.decode(latent).flatten(1) - linear).abs().max()
    assert error < 0.03 * linear.abs().max()  # the head's norm is only nearly linear


def test_components_are_orthonormal_and_ordered() -> None:
    _, code = patches_and_code()
    gram = code.basis.flatten(1) @ code.basis.flatten(1).T
    assert torch.allclose(gram, torch.eye(8), atol=1e-5)
    assert (code.deviation.diff() <= 0).all()


def test_other_resampling_is_refused() -> None:
    _, code = patches_and_code()
    with pytest.raises(ConfigError, match="principal-component start"):
        start_from(Autoencoder(replace(SMALL, upsample_block_type="interpolate")), code)

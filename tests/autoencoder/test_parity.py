"""DC-AE against diffusers' AutoencoderDC on shared random weights, and the published counts.

Also tests `autoencoder/blocks.py`, `autoencoder/config.py`, `autoencoder/model.py` and
`autoencoder/resample.py`.
"""

from dataclasses import replace

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from torch import nn

from opensana.autoencoder import Autoencoder, AutoencoderConfig

SMALL = AutoencoderConfig(
    latent_channels=8,
    attention_head_dim=8,
    encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(8, 16, 16, 32),
    decoder_block_out_channels=(8, 16, 16, 32),
    encoder_layers_per_block=(1, 2, 1, 1),
    decoder_layers_per_block=(2, 1, 2, 1),
    encoder_qkv_multiscales=((), (), (5,), (5,)),
    decoder_qkv_multiscales=((), (), (5,), (3, 5)),
    decoder_norm_types=("rms_norm",) * 4,
    decoder_act_fns=("silu",) * 4,
)

VARIANTS = {
    "sana": SMALL,
    "in": replace(
        SMALL,
        encoder_layers_per_block=(0, 2, 1, 1),
        decoder_layers_per_block=(0, 1, 2, 1),
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types=("batch_norm", "batch_norm", "rms_norm", "rms_norm"),
        decoder_act_fns=("relu", "relu", "silu", "silu"),
    ),
    "lite": replace(
        SMALL,
        decoder_block_types=("ResBlock",) * 4,
        decoder_layers_per_block=(0, 1, 2, 1),
        upsample_block_type="pixel_shuffle",
        decoder_conv_act_fn="silu",
    ),
    "no shortcuts": replace(SMALL, encoder_out_shortcut=False, decoder_in_shortcut=False),
}


def reference(config: AutoencoderConfig) -> AutoencoderDC:
    values = {name: value for name, value in config.to_dict().items() if name != "_class_name"}
    return AutoencoderDC(**values).eval()


def randomise(model: nn.Module) -> None:
    """Random norms too, so that a swapped weight or bias shows."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else value + 0.2 * noise)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", [(64, 96), (16, 24)])
@torch.no_grad()
def test_encode_and_decode_agree(name: str, size: tuple[int, int]) -> None:
    config = VARIANTS[name]
    theirs, ours = reference(config), Autoencoder(config).eval()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    expected = theirs.encode(pixels, return_dict=False)[0]
    assert relative_error(ours.encode(pixels), expected * config.scaling_factor) < 1e-5

    picture = theirs.decode(expected, return_dict=False)[0]
    assert relative_error(ours.decode(expected * config.scaling_factor), picture) < 1e-5


def test_config_reads_what_diffusers_writes() -> None:
    for config in VARIANTS.values():
        assert AutoencoderConfig.from_dict(dict(reference(config).config)) == config


@torch.no_grad()
def test_shortcuts_undo_each_other() -> None:
    """Up, then down, is the identity where the convolutions are zero (DC-AE paper 3.2)."""
    from opensana.autoencoder.resample import Downsample, Upsample

    up, down = Upsample(32, 16, kind="pixel_shuffle"), Downsample(16, 32, kind="Conv")
    for parameter in (*up.parameters(), *down.parameters()):
        parameter.zero_()
    x = torch.randn(1, 32, 4, 6)
    assert torch.equal(down(up(x)), x)

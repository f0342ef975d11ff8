"""Every value of the networks' configurations is honoured as diffusers does, or refused."""

from typing import Any

import pytest
import torch

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.errors import ConfigError
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from tests import tiny

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

TRANSFORMERS: list[dict[str, Any]] = [
    {"in_channels": 4},
    {"out_channels": None},
    {"num_attention_heads": 4, "attention_head_dim": 4},
    {"num_layers": 1},
    {"num_cross_attention_heads": 4},
    {"cross_attention_head_dim": 16},
    {"caption_channels": 24},
    {"mlp_ratio": 1.5},
    {"dropout": 0.5},  # of training
    {"attention_bias": True},
    {"sample_size": 8, "patch_size": 2, "interpolation_scale": 1.5},
    {"norm_elementwise_affine": True, "norm_eps": 1e-2},
    {"guidance_embeds": True, "guidance_embeds_scale": 3.0},
    {"qk_norm": "rms_norm_across_heads", "norm_eps": 1e-2},
    {"timestep_scale": 0.001},
]


def plain(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not name.startswith("_")}


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("changes", TRANSFORMERS, ids=lambda changes: "-".join(changes))
@torch.no_grad()
def test_a_transformer_of_any_configuration_agrees_with_diffusers(changes: dict[str, Any]) -> None:
    config = plain(tiny.TRANSFORMER.to_dict()) | changes
    theirs = diffusers.SanaTransformer2DModel(**config).eval()
    tiny.randomise(theirs, 5)
    ours = Transformer(TransformerConfig.from_dict(config)).eval()
    ours.load_state_dict(theirs.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, config["in_channels"], 4, 8, generator=generator)
    text = torch.randn(2, 5, config["caption_channels"], generator=generator)
    timestep, guidance = torch.tensor([999.0, 123.0]), torch.tensor([4.0, 5.0])
    embedded = config["guidance_embeds"]
    expected = theirs(
        x,
        text,
        timestep * config["timestep_scale"],
        guidance=guidance * config["guidance_embeds_scale"] if embedded else None,
    ).sample
    assert far(ours(x, timestep, text, guidance=guidance if embedded else None), expected) < 1e-5


AUTOENCODERS: list[dict[str, Any]] = [
    {"latent_channels": 4},
    {"attention_head_dim": 4},
    {"encoder_block_types": "ResBlock"},
    {"decoder_block_types": "EfficientViTBlock"},
    {"encoder_layers_per_block": [0, 1, 1, 1, 1, 1]},
    {"decoder_layers_per_block": [0, 1, 1, 1, 1, 1]},
    {"encoder_qkv_multiscales": [[3, 5]] * 6},
    {"decoder_qkv_multiscales": [[]] * 6},
    {"upsample_block_type": "pixel_shuffle"},
    {"downsample_block_type": "pixel_unshuffle"},
    {"downsample_block_type": "of another name"},
    {"decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * 3},
    {"decoder_act_fns": "relu"},
    {"encoder_out_shortcut": False, "decoder_in_shortcut": False},
    {"decoder_conv_act_fn": "silu"},
]


@pytest.mark.parametrize("changes", AUTOENCODERS, ids=lambda changes: "-".join(changes))
@torch.no_grad()
def test_an_autoencoder_of_any_configuration_agrees_with_diffusers(changes: dict[str, Any]) -> None:
    config = plain(tiny.AUTOENCODER.to_dict()) | changes
    theirs = diffusers.AutoencoderDC(**config).eval()
    tiny.randomise(theirs, 5, scale=0.05)
    ours = Autoencoder(AutoencoderConfig.from_dict(config)).eval()
    ours.load_state_dict(theirs.state_dict())
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    latent = theirs.encode(pixels).latent
    assert far(ours.encoder(pixels), latent) < 1e-5
    assert far(ours.decoder(latent), theirs.decode(latent).sample) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"upsample_block_type": "of another name"},
        {"decoder_norm_types": "layer_norm"},
        {"decoder_act_fns": "gelu"},
        {"decoder_conv_act_fn": "gelu"},
        {"encoder_block_types": "DCDownBlock"},
        {"shift_factor": 0.1},
    ],
)
def test_other_blocks_of_an_autoencoder_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        AutoencoderConfig.from_dict(tiny.AUTOENCODER.to_dict() | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"cross_attention_dim": None},
        {"cross_attention_dim": 24},
        {"qk_norm": "layer_norm"},
        {"quantization_config": {"quant_method": "torchao"}},
    ],
)
def test_other_blocks_of_a_transformer_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        TransformerConfig.from_dict(tiny.TRANSFORMER.to_dict() | changes)

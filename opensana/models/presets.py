"""The published architectures as values (sections 1.3 and 2.1), found by name.

Which published model has which: `weights/published_models.py`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from opensana.autoencoder.config import AutoencoderConfig, Block
from opensana.errors import ConfigError, near
from opensana.transformer.config import TransformerConfig
from opensana.weights.published_models import hub_id, plain_name

Value = TypeVar("Value")

# ------------------------------------------------------------------ autoencoders (DC-AE)

dc_ae_f32c32_sana_1_0 = AutoencoderConfig()
# Version 1.1 has newer decoder weights; the architecture and the latents are those of 1.0.
dc_ae_f32c32_sana_1_1 = dc_ae_f32c32_sana_1_0
dc_ae_lite_f32c32_sana_1_1 = replace(
    dc_ae_f32c32_sana_1_0,
    decoder_block_types=("ResBlock",) * 6,
    decoder_layers_per_block=(0, 3, 5, 4, 4, 4),
    decoder_qkv_multiscales=((),) * 6,
    upsample_block_type="pixel_shuffle",
    decoder_conv_act_fn="silu",
)


def _imagenet_autoencoder(
    latent_channels: int, deep_stages: int, scale: float
) -> AutoencoderConfig:
    """The `in` and `mix` family: f32 has three attention stages, f64 four, f128 five."""
    widths = (128, 256, 512, 512, 1024, 1024, 2048, 2048)[: 3 + deep_stages]
    types: tuple[Block, ...] = ("ResBlock",) * 3 + ("EfficientViTBlock",) * deep_stages
    return AutoencoderConfig(
        latent_channels=latent_channels,
        encoder_block_types=types,
        decoder_block_types=types,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(0, 4, 8) + (2,) * deep_stages,
        decoder_layers_per_block=(0, 5, 10) + (2,) * deep_stages,
        encoder_qkv_multiscales=((),) * len(widths),
        decoder_qkv_multiscales=((),) * len(widths),
        upsample_block_type="pixel_shuffle",
        downsample_block_type="pixel_unshuffle",
        decoder_norm_types=("batch_norm",) * 3 + ("rms_norm",) * deep_stages,
        decoder_act_fns=("relu",) * 3 + ("silu",) * deep_stages,
        scaling_factor=scale,
    )


dc_ae_f32c32_in_1_0 = _imagenet_autoencoder(32, 3, 0.3189)
dc_ae_f32c32_mix_1_0 = _imagenet_autoencoder(32, 3, 0.4552)
dc_ae_f64c128_in_1_0 = _imagenet_autoencoder(128, 4, 0.2889)
dc_ae_f64c128_mix_1_0 = _imagenet_autoencoder(128, 4, 0.4538)
dc_ae_f128c512_in_1_0 = _imagenet_autoencoder(512, 5, 0.4883)
dc_ae_f128c512_mix_1_0 = _imagenet_autoencoder(512, 5, 0.3620)

AUTOENCODERS: dict[str, AutoencoderConfig] = {
    "dc_ae_f32c32_sana_1_0": dc_ae_f32c32_sana_1_0,
    "dc_ae_f32c32_sana_1_1": dc_ae_f32c32_sana_1_1,
    "dc_ae_lite_f32c32_sana_1_1": dc_ae_lite_f32c32_sana_1_1,
    "dc_ae_f32c32_in_1_0": dc_ae_f32c32_in_1_0,
    "dc_ae_f32c32_mix_1_0": dc_ae_f32c32_mix_1_0,
    "dc_ae_f64c128_in_1_0": dc_ae_f64c128_in_1_0,
    "dc_ae_f64c128_mix_1_0": dc_ae_f64c128_mix_1_0,
    "dc_ae_f128c512_in_1_0": dc_ae_f128c512_in_1_0,
    "dc_ae_f128c512_mix_1_0": dc_ae_f128c512_mix_1_0,
}

# ------------------------------------------------------------------ transformers (Linear DiT)

sana_1600m_1024 = TransformerConfig(
    num_attention_heads=70,
    attention_head_dim=32,
    num_layers=20,
    num_cross_attention_heads=20,
    cross_attention_head_dim=112,
    cross_attention_dim=2240,
    caption_channels=2304,
    mlp_ratio=2.5,
    sample_size=32,
)
sana_1600m_512 = replace(sana_1600m_1024, sample_size=16)
# Above 1024 px the published models add fixed sine-cosine positions.
sana_1600m_2k = replace(sana_1600m_1024, sample_size=64, interpolation_scale=1.0)
sana_1600m_4k = replace(sana_1600m_1024, sample_size=128, interpolation_scale=2.0)

sana_600m_1024 = replace(
    sana_1600m_1024,
    num_attention_heads=36,
    num_layers=28,
    num_cross_attention_heads=16,
    cross_attention_head_dim=72,
    cross_attention_dim=1152,
)
sana_600m_512 = replace(sana_600m_1024, sample_size=16)

# SANA-1.5 normalises queries and keys, and grows in depth.
sana_1_5_1600m = replace(sana_1600m_1024, qk_norm="rms_norm_across_heads")
sana_1_5_4800m = replace(sana_1_5_1600m, num_layers=60)
sana_2400m = replace(sana_1600m_1024, num_layers=30)
sana_3200m = replace(sana_1600m_1024, num_layers=40)

# Sprint also takes the guidance scale as an input.
sprint_1600m = replace(sana_1_5_1600m, guidance_embeds=True, guidance_embeds_scale=0.1)
sprint_600m = replace(
    sana_600m_1024,
    qk_norm="rms_norm_across_heads",
    guidance_embeds=True,
    guidance_embeds_scale=0.1,
)
# What Sprint was distilled from has its normed queries and keys, not its guidance.
sprint_teacher_1600m = sana_1_5_1600m
sprint_teacher_600m = replace(sana_600m_1024, qk_norm="rms_norm_across_heads")

TRANSFORMERS: dict[str, TransformerConfig] = {
    "sana_600m_512": sana_600m_512,
    "sana_600m_1024": sana_600m_1024,
    "sana_1600m_512": sana_1600m_512,
    "sana_1600m_1024": sana_1600m_1024,
    "sana_1600m_2k": sana_1600m_2k,
    "sana_1600m_4k": sana_1600m_4k,
    "sana_1_5_1600m": sana_1_5_1600m,
    "sana_1_5_4800m": sana_1_5_4800m,
    "sana_2400m": sana_2400m,
    "sana_3200m": sana_3200m,
    "sprint_600m": sprint_600m,
    "sprint_1600m": sprint_1600m,
    "sprint_teacher_600m": sprint_teacher_600m,
    "sprint_teacher_1600m": sprint_teacher_1600m,
}


def published_autoencoder(model: str) -> AutoencoderConfig | None:
    """The architecture of a DC-AE from its hub id or folder name; None if it is not one."""
    name = plain_name(model)
    return autoencoder_preset(name) if name.startswith("dc-ae") and hub_id(name) else None


def autoencoder_preset(name: str) -> AutoencoderConfig:
    """The architecture of that name; hyphens and dots count as underscores."""
    return _by_name(AUTOENCODERS, name, "autoencoder")


def transformer_preset(name: str) -> TransformerConfig:
    """The architecture of that name; hyphens and dots count as underscores."""
    return _by_name(TRANSFORMERS, name, "transformer")


def _by_name(table: Mapping[str, Value], name: str, kind: str) -> Value:
    key = name.lower().replace("-", "_").replace(".", "_")
    if key not in table:
        raise ConfigError(
            f"no {kind} preset {name!r}{near(key, table)}; there are: {', '.join(table)}"
        )
    return table[key]

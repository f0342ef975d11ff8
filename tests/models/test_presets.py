"""Presets against the published parameter counts, counted on the meta device."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.errors import ConfigError
from opensana.models import presets
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from opensana.weights.published_models import MODELS, published_model

TRANSFORMER_COUNTS = {
    "sana_600m_512": 591_747_872,
    "sana_600m_1024": 591_747_872,
    "sana_1600m_512": 1_604_462_752,
    "sana_1600m_1024": 1_604_462_752,
    "sana_1600m_2k": 1_604_462_752,
    "sana_1600m_4k": 1_604_462_752,
    "sana_1_5_1600m": 1_604_641_952,
    "sana_1_5_4800m": 4_721_825_952,
    "sprint_600m": 593_501_216,
    "sprint_1600m": 1_610_237_472,
    "sprint_teacher_600m": 591_876_896,
    "sprint_teacher_1600m": 1_604_641_952,
}
SANA_ENCODER, SANA_DECODER = 153_027_104, 159_223_171
# Millions, as published: encoder, decoder.
IMAGENET_COUNTS = {
    "f32c32": (123.17, 200.18),
    "f64c128": (264.55, 412.35),
    "f128c512": (415.66, 705.02),
}


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize("name", TRANSFORMER_COUNTS)
def test_transformers_have_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        assert count(Transformer(presets.TRANSFORMERS[name])) == TRANSFORMER_COUNTS[name]


@pytest.mark.parametrize(("name", "billions"), [("sana_2400m", 2.4), ("sana_3200m", 3.2)])
def test_deeper_transformers_are_near_their_names(name: str, billions: float) -> None:
    with torch.device("meta"):
        assert count(Transformer(presets.TRANSFORMERS[name])) == pytest.approx(
            billions * 1e9, rel=0.03
        )


@pytest.mark.parametrize("name", presets.AUTOENCODERS)
def test_autoencoders_have_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = Autoencoder(presets.AUTOENCODERS[name])
    encoder, decoder = count(model.encoder), count(model.decoder)
    if "sana" in name:
        assert encoder == SANA_ENCODER
        assert decoder == SANA_DECODER or "lite" in name
        return
    published = IMAGENET_COUNTS[name.split("_")[2]]
    assert (encoder / 1e6, decoder / 1e6) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize("name", presets.AUTOENCODERS)
def test_autoencoders_compress_as_named(name: str) -> None:
    config = presets.AUTOENCODERS[name]
    compression, channels = (int(n) for n in name.split("_f")[1].split("_")[0].split("c"))
    assert (config.compression, config.latent_channels) == (compression, channels)


def test_configs_survive_the_published_files() -> None:
    for config in presets.AUTOENCODERS.values():
        text = json.dumps(config.to_dict())
        assert AutoencoderConfig.from_dict(json.loads(text)) == config
    for config in presets.TRANSFORMERS.values():
        text = json.dumps(config.to_dict())
        assert TransformerConfig.from_dict(json.loads(text)) == config


@pytest.mark.parametrize("name", MODELS)
def test_every_published_model_has_a_published_size(name: str) -> None:
    assert MODELS[name].transformer in TRANSFORMER_COUNTS


def test_the_published_values_of_sprint_are_its_presets() -> None:
    published = json.loads("""{
        "_class_name": "SanaTransformer2DModel",
        "attention_bias": false, "attention_head_dim": 32, "caption_channels": 2304,
        "cross_attention_dim": 2240, "cross_attention_head_dim": 112, "dropout": 0.0,
        "guidance_embeds": true, "guidance_embeds_scale": 0.1, "in_channels": 32,
        "interpolation_scale": null, "mlp_ratio": 2.5, "norm_elementwise_affine": false,
        "norm_eps": 1e-06, "num_attention_heads": 70, "num_cross_attention_heads": 20,
        "num_layers": 20, "out_channels": 32, "patch_size": 1,
        "qk_norm": "rms_norm_across_heads", "sample_size": 32, "timestep_scale": 1.0
    }""")
    assert TransformerConfig.from_dict(published) == presets.sprint_1600m
    small = published | {"num_attention_heads": 36, "num_layers": 28, "cross_attention_dim": 1152}
    small |= {"num_cross_attention_heads": 16, "cross_attention_head_dim": 72}
    assert TransformerConfig.from_dict(small) == presets.sprint_600m


@pytest.mark.parametrize("size", ["0.6B", "1.6B"])
@pytest.mark.parametrize("form", ["Sana_Sprint_{}_1024px", "x/SANA_Sprint_{}_1024px_diffusers"])
def test_sprint_is_drawn_in_two_steps_with_guidance(size: str, form: str) -> None:
    known = published_model(form.format(size))
    assert known is not None
    assert (known.steps, known.guidance, known.shift, known.dtype) == (2, 4.5, 1.0, "bf16")


def test_models_name_presets_of_their_size() -> None:
    for name, known in MODELS.items():
        side = presets.TRANSFORMERS[known.transformer].sample_size
        compression = presets.AUTOENCODERS[known.autoencoder].compression
        assert side * compression == known.native_size, name
        assert known.dtype_rule


@pytest.mark.parametrize(
    "name", ["Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers", "Sana_1600M_4Kpx_BF16"]
)
def test_published_models_are_found_by_hub_id(name: str) -> None:
    known = published_model(name)
    assert known is not None
    assert (known.shift, known.dtype, known.native_size) == (6.0, "bf16", 4096)
    assert published_model("someone/else") is None


def test_names_are_forgiving_about_hyphens_and_strict_otherwise() -> None:
    found = presets.autoencoder_preset("dc-ae-f32c32-sana-1.0")
    assert found == presets.dc_ae_f32c32_sana_1_0
    assert presets.transformer_preset("sana_600m_512").num_layers == 28
    with pytest.raises(ConfigError, match="did you mean 'sana_1600m_1024'"):
        presets.transformer_preset("sana_1600m_1025")
    assert replace(found) == found

"""Our descriptions of other networks count what diffusers' own classes do, on the meta device.

Also tests `evaluate/cost/convolutional.py`.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from opensana.evaluate.cost.convolutional import KlDecoder, UNet
from opensana.evaluate.cost.peers import Flux, HunyuanDiT, LuminaNext, PixArt, StableDiffusion3
from opensana.evaluate.cost.sheet import Sheet

diffusers: Any = pytest.importorskip("diffusers")
META = torch.device("meta")
SIZE = 256
TOKENS, LATENT = (SIZE // 16) ** 2, SIZE // 8


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device=META)


Case = tuple[Callable[[], nn.Module], dict[str, Any], Sheet]


def flux() -> Case:
    def build() -> nn.Module:
        return diffusers.FluxTransformer2DModel(
            num_layers=1, num_single_layers=2, guidance_embeds=True
        )

    inputs = {
        "hidden_states": empty(1, TOKENS, 64),
        "encoder_hidden_states": empty(1, 100, 4096),
        "pooled_projections": empty(1, 768),
        "timestep": empty(1),
        "img_ids": empty(TOKENS, 3),
        "txt_ids": empty(100, 3),
        "guidance": empty(1),
    }
    return build, inputs, Flux(double=1, single=2).forward(SIZE, 100)


def sd3() -> Case:
    def build() -> nn.Module:
        return diffusers.SD3Transformer2DModel(
            sample_size=LATENT,
            num_layers=2,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            num_attention_heads=24,
            attention_head_dim=64,
            pooled_projection_dim=2048,
            out_channels=16,
        )

    inputs = {
        "hidden_states": empty(1, 16, LATENT, LATENT),
        "encoder_hidden_states": empty(1, 77, 4096),
        "pooled_projections": empty(1, 2048),
        "timestep": empty(1),
    }
    return build, inputs, StableDiffusion3(blocks=2).forward(SIZE, 77)


def pixart() -> Case:
    def build() -> nn.Module:
        return diffusers.PixArtTransformer2DModel(
            sample_size=LATENT,
            num_layers=2,
            caption_channels=4096,
            use_additional_conditions=False,
        )

    inputs = {
        "hidden_states": empty(1, 4, LATENT, LATENT),
        "encoder_hidden_states": empty(1, 120, 4096),
        "timestep": empty(1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return build, inputs, PixArt(blocks=2).forward(SIZE, 120)


def hunyuan() -> Case:
    def build() -> nn.Module:
        return diffusers.HunyuanDiT2DModel(
            num_layers=4,
            attention_head_dim=88,
            num_attention_heads=16,
            in_channels=4,
            patch_size=2,
            sample_size=LATENT,
            hidden_size=1408,
            mlp_ratio=4.3637,
            activation_fn="gelu-approximate",
            learn_sigma=True,
            norm_type="layer_norm",
            text_len=77,
            text_len_t5=256,
        )

    inputs = {
        "hidden_states": empty(1, 4, LATENT, LATENT),
        "timestep": empty(1),
        "encoder_hidden_states": empty(1, 77, 1024),
        "text_embedding_mask": empty(1, 77),
        "encoder_hidden_states_t5": empty(1, 256, 2048),
        "text_embedding_mask_t5": empty(1, 256),
        "image_meta_size": empty(1, 6),
        "style": torch.zeros(1, dtype=torch.long, device=META),
        "image_rotary_emb": (empty(TOKENS, 88), empty(TOKENS, 88)),
    }
    return build, inputs, HunyuanDiT(blocks=4).forward(SIZE, 333)


def lumina() -> Case:
    def build() -> nn.Module:
        return diffusers.LuminaNextDiT2DModel(
            sample_size=LATENT,
            hidden_size=2304,
            num_layers=2,
            num_attention_heads=32,
            num_kv_heads=8,
            multiple_of=256,
            cross_attention_dim=2048,
        )

    side = SIZE // 16
    inputs = {
        "hidden_states": empty(1, 4, LATENT, LATENT),
        "timestep": empty(1),
        "encoder_hidden_states": empty(1, 60, 2048),
        "encoder_mask": empty(1, 60),
        "image_rotary_emb": torch.empty(side, side, 36, dtype=torch.complex64, device=META),
        "cross_attention_kwargs": {},
    }
    return build, inputs, LuminaNext(blocks=2).forward(SIZE, 60)


def sdxl() -> Case:
    def build() -> nn.Module:
        return diffusers.UNet2DConditionModel(
            sample_size=LATENT,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            layers_per_block=2,
            cross_attention_dim=2048,
            transformer_layers_per_block=(1, 2, 3),
            attention_head_dim=(5, 10, 20),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )

    inputs = {
        "sample": empty(1, 4, LATENT, LATENT),
        "timestep": empty(1),
        "encoder_hidden_states": empty(1, 77, 2048),
        "added_cond_kwargs": {"text_embeds": empty(1, 1280), "time_ids": empty(1, 6)},
    }
    return build, inputs, UNet(transformers=(0, 2, 3)).forward(SIZE, 77)


@pytest.mark.parametrize("case", [flux, sd3, pixart, hunyuan, lumina, sdxl])
def test_a_forward_pass(case: Callable[[], Case]) -> None:
    build, inputs, sheet = case()
    with META:
        network = build()
    with FlopCounterMode(display=False) as counter:
        network(**inputs)
    assert sheet.macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-3)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert sheet.parameters == pytest.approx(parameters, rel=5e-3)


@pytest.mark.parametrize("channels", [4, 16])
def test_a_decoder(channels: int) -> None:
    with META:
        network = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=channels,
            use_quant_conv=channels == 4,
            use_post_quant_conv=channels == 4,
        )
    with FlopCounterMode(display=False) as counter:
        network.decode(empty(1, channels, LATENT, LATENT))
    sheet = KlDecoder(latent=channels, mixes=channels == 4).decode(SIZE)
    assert sheet.macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    weights = sum(parameter.numel() for parameter in network.decoder.parameters())
    assert sheet.parameters == pytest.approx(weights, rel=1e-3)

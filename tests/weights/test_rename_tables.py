"""Rename tables: a round through the official naming, and diffusers' own converter."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opensana.errors import WeightsError
from opensana.weights.rename_tables import convert_autoencoder, convert_transformer
from opensana.weights.safetensors import load_into
from tests import tiny

SPRINT = replace(tiny.TRANSFORMER, guidance_embeds=True, qk_norm="rms_norm_across_heads")
TRANSFORMERS = {
    "sana": tiny.TRANSFORMER,
    "sana 1.5": replace(tiny.TRANSFORMER, qk_norm="rms_norm_across_heads"),
    "sprint": SPRINT,
}
AUTOENCODERS = {
    "sana": tiny.AUTOENCODER,
    "in": replace(
        tiny.AUTOENCODER,
        encoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        decoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        downsample_block_type="pixel_unshuffle",
        upsample_block_type="pixel_shuffle",
        decoder_norm_types=("batch_norm",) * 3 + ("rms_norm",) * 3,
    ),
    "lite": replace(
        tiny.AUTOENCODER,
        decoder_block_types=("ResBlock",) * 6,
        decoder_layers_per_block=(0, 1, 1, 1, 1, 1),
        upsample_block_type="pixel_shuffle",
    ),
}


def official_transformer(state: dict[str, Tensor], *, sprint: bool) -> dict[str, Tensor]:
    """The inverse of the conversion, written out by hand."""
    time = "time_embed." if sprint else "time_embed.emb."
    pairs = [
        ("patch_embed.proj", "x_embedder.proj"),
        (f"{time}timestep_embedder.linear_1", "t_embedder.mlp.0"),
        (f"{time}timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ("time_embed.guidance_embedder.linear_1", "cfg_embedder.mlp.0"),
        ("time_embed.guidance_embedder.linear_2", "cfg_embedder.mlp.2"),
        ("time_embed.linear", "t_block.1"),
        ("caption_projection.linear_1", "y_embedder.y_proj.fc1"),
        ("caption_projection.linear_2", "y_embedder.y_proj.fc2"),
        ("caption_norm", "attention_y_norm"),
        ("proj_out", "final_layer.linear"),
        ("transformer_blocks.", "blocks."),
        ("attn1.to_out.0", "attn.proj"),
        ("attn1.norm_q", "attn.q_norm"),
        ("attn1.norm_k", "attn.k_norm"),
        ("attn2.to_q", "cross_attn.q_linear"),
        ("attn2.to_out.0", "cross_attn.proj"),
        ("attn2.norm_q", "cross_attn.q_norm"),
        ("attn2.norm_k", "cross_attn.k_norm"),
        ("ff.conv_inverted", "mlp.inverted_conv.conv"),
        ("ff.conv_depth", "mlp.depth_conv.conv"),
        ("ff.conv_point", "mlp.point_conv.conv"),
    ]
    rest, out = dict(state), {}
    for key in [key for key in state if ".attn1.to_q." in key]:
        parts = [rest.pop(key.replace("to_q", f"to_{letter}")) for letter in "qkv"]
        out[key.replace("attn1.to_q", "attn.qkv").replace("transformer_", "")] = torch.cat(parts)
    for key in [key for key in state if ".attn2.to_k." in key]:
        parts = [rest.pop(key.replace("to_k", f"to_{letter}")) for letter in "kv"]
        out[key.replace("attn2.to_k", "cross_attn.kv_linear").replace("transformer_", "")] = (
            torch.cat(parts)
        )
    out["final_layer.scale_shift_table"] = rest.pop("scale_shift_table")
    for key, value in rest.items():
        for ours, theirs in pairs:
            key = key.replace(ours, theirs)
        out[key] = value
    return out


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_survive_the_official_naming(name: str) -> None:
    model = tiny.transformer(TRANSFORMERS[name])
    state = dict(model.state_dict())
    official = official_transformer(state, sprint=name == "sprint")
    extra = {"pos_embed": torch.zeros(1), "logvar_linear.weight": torch.zeros(1)}
    extra["y_embedder.y_embedding"] = torch.zeros(300, 4)
    converted = convert_transformer(official | extra)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)
    load_into(tiny.transformer(TRANSFORMERS[name]), converted, where="test")


def test_official_transformers_have_the_known_number_of_tensors() -> None:
    state = dict(tiny.transformer().state_dict())
    blocks = tiny.TRANSFORMER.num_layers
    assert len(state) == 16 + 19 * blocks
    assert (
        len([k for k in official_transformer(state, sprint=False) if "blocks." in k]) == 15 * blocks
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("blocks.0.attn.qvk.weight", "did you mean 'attn.qkv'"),
        ("x_embeder.proj.bias", "did you mean 'x_embedder.proj'"),
        ("weight", "no known model"),
        ("blocks.x.attn.qkv.weight", "no known model"),
    ],
)
def test_an_unknown_key_is_an_error(key: str, hint: str) -> None:
    with pytest.raises(WeightsError, match=hint):
        convert_transformer({key: torch.zeros(6, 2)})


def test_rows_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(WeightsError, match="cannot be split in 3"):
        convert_transformer({"blocks.0.attn.qkv.weight": torch.zeros(4, 2)})


def test_two_keys_of_one_name_are_an_error() -> None:
    key = "encoder.project_in.{}conv.bias"
    with pytest.raises(WeightsError, match="two tensors"):
        convert_autoencoder({key.format("main."): torch.zeros(1), key.format(""): torch.zeros(1)})


# ------------------------------------------------------------------ autoencoder

LITE_MLA = {
    "attn.to_qkv_multiscale.0.proj_in": "context_module.main.aggreg.0.0",
    "attn.to_qkv_multiscale.0.proj_out": "context_module.main.aggreg.0.1",
    "attn.to_out": "context_module.main.proj.conv",
    "attn.norm_out": "context_module.main.proj.norm",
    "conv_out.conv_inverted": "local_module.main.inverted_conv.conv",
    "conv_out.conv_depth": "local_module.main.depth_conv.conv",
    "conv_out.conv_point": "local_module.main.point_conv.conv",
    "conv_out.norm": "local_module.main.point_conv.norm",
    "conv1": "main.conv1.conv",
    "conv2": "main.conv2.conv",
    "norm": "main.conv2.norm",
}
ENDS = {
    "encoder.conv_in": "encoder.project_in.conv",
    "encoder.conv_in.conv": "encoder.project_in.conv.conv",
    "encoder.conv_out": "encoder.project_out.main.op_list.0.conv",
    "decoder.conv_in": "decoder.project_in.main.conv",
    "decoder.norm_out": "decoder.project_out.op_list.0",
    "decoder.conv_out": "decoder.project_out.op_list.2.conv",
    "decoder.conv_out.conv": "decoder.project_out.op_list.2.conv.conv",
}


def official_autoencoder(state: dict[str, Tensor], *, plain_down: bool) -> dict[str, Tensor]:
    """The inverse of the conversion, written out by hand."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        if module in ENDS:
            out[f"{ENDS[module]}.{leaf}"] = value
            continue
        side, _, stage, block, layer = module.split(".", 4)
        place = f"{side}.stages.{stage}.op_list.{block}"
        if layer in ("attn.to_k", "attn.to_v"):
            continue
        if layer == "attn.to_q":
            parts = [state[key.replace("to_q", f"to_{letter}")] for letter in "qkv"]
            out[f"{place}.context_module.main.qkv.conv.{leaf}"] = torch.cat(parts)[..., None, None]
        elif layer == "conv":
            one = side == "encoder" and plain_down
            out[f"{place}.main.{'conv' if one else 'conv.conv'}.{leaf}"] = value
        else:
            value = value[..., None, None] if layer == "attn.to_out" else value
            out[f"{place}.{LITE_MLA[layer]}.{leaf}"] = value
    return out


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoders_survive_the_original_naming(name: str) -> None:
    model = tiny.autoencoder(AUTOENCODERS[name])
    state = dict(model.state_dict())
    official = official_autoencoder(state, plain_down=name != "in")
    converted = convert_autoencoder(official)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[key], state[key]) for key in state)
    load_into(tiny.autoencoder(AUTOENCODERS[name]), converted, where="test")


@pytest.mark.parametrize("name", ["sana", "in"])
def test_diffusers_converts_the_same(name: str) -> None:
    from diffusers.loaders import single_file_utils

    state = dict(tiny.autoencoder(AUTOENCODERS[name]).state_dict())
    official = official_autoencoder(state, plain_down=name != "in")
    theirs = single_file_utils.convert_autoencoder_dc_checkpoint_to_diffusers(dict(official))
    ours = convert_autoencoder(official)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_unknown_autoencoder_key_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"did you mean 'context_module\.qkv\.conv'"):
        convert_autoencoder(
            {"encoder.stages.3.op_list.0.context_module.main.qvk.conv.weight": torch.zeros(3)}
        )

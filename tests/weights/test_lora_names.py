"""LoRA files in the forms that people have: the same changes, whatever the keys are called."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from opensana.errors import WeightsError
from opensana.weights.lora import METADATA, read_lora

LAYERS = {
    "transformer_blocks.0.attn1.to_q": (16, 16),
    "transformer_blocks.1.attn2.to_out.0": (16, 16),
    "transformer_blocks.11.ff.conv_inverted": (80, 16, 1, 1),
    "proj_out": (8, 16),
    "time_embed.emb.timestep_embedder.linear_1": (16, 256),
}
RANK = 2
Pairs = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    draw = torch.Generator().manual_seed(2)
    return {
        name: (
            torch.randn(RANK, *shape[1:], generator=draw),
            torch.randn(shape[0], RANK, *(1 for _ in shape[2:]), generator=draw),
        )
        for name, shape in LAYERS.items()
    }


def dotted(prefix: str, down: str, up: str) -> Callable[[Pairs], dict[str, Tensor]]:
    def keys(pairs: Pairs) -> dict[str, Tensor]:
        named = {f"{prefix}{name}": both for name, both in pairs.items()}
        return {f"{n}{down}": a for n, (a, _) in named.items()} | {
            f"{n}{up}": b for n, (_, b) in named.items()
        }

    return keys


def flat(prefix: str) -> Callable[[Pairs], dict[str, Tensor]]:
    def keys(pairs: Pairs) -> dict[str, Tensor]:
        named = {name.replace(".", "_"): both for name, both in pairs.items()}
        return dotted(prefix, ".lora_down.weight", ".lora_up.weight")(named)

    return keys


AB = (".lora_A.weight", ".lora_B.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")
FORMS = {
    "diffusers": dotted("transformer.", *AB),
    "no prefix": dotted("", *AB),
    "peft": dotted("base_model.model.", *AB),
    "peft around a pipeline": dotted("base_model.model.transformer.", *AB),
    "ComfyUI": dotted("diffusion_model.", *AB),
    "whole checkpoint": dotted("model.diffusion_model.", *AB),
    "compiled": dotted("transformer._orig_mod.", *AB),
    "parallel": dotted("module.", *AB),
    "adapter named": dotted("", ".lora_A.default.weight", ".lora_B.default.weight"),
    "adapter numbered": dotted(
        "transformer.", ".lora_A.default_0.weight", ".lora_B.default_0.weight"
    ),
    "dots, down and up": dotted("transformer.", *KOHYA),
    "old diffusers": dotted("transformer.", ".lora.down.weight", ".lora.up.weight"),
    "kohya": flat("lora_unet_"),
    "OneTrainer": flat("lora_transformer_"),
    "LyCORIS": flat("lycoris_"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path: Path, pairs: Pairs, form: str):
    save_file(FORMS[form](pairs), tmp_path / "a.SAFETENSORS")
    lora = read_lora(tmp_path)
    assert set(lora.layers) == set(LAYERS)
    for name, (down, up) in pairs.items():
        expected = up.flatten(1) @ down.flatten(1)
        torch.testing.assert_close(lora.layers[name].product, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_of_alpha_counts(tmp_path: Path, pairs: Pairs, form: str):
    state = FORMS[form](pairs)
    suffixes = (
        *AB,
        *KOHYA,
        ".lora_A.default.weight",
        ".lora_A.default_0.weight",
        ".lora.down.weight",
    )
    ends = [(key, end) for key in state for end in suffixes if key.endswith(end)]
    alphas = {key.removesuffix(end) + ".alpha": torch.tensor(5.0) for key, end in ends}
    alphas = dict.fromkeys(alphas, torch.tensor(5.0, dtype=torch.bfloat16))
    save_file({k: v.clone() for k, v in (state | alphas).items()}, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    assert {change.strength for change in lora.layers.values()} == {5.0 / RANK}
    assert not lora.notes


def test_names_of_the_official_code(tmp_path: Path):
    draw = torch.Generator().manual_seed(3)
    down, up = (torch.randn(*shape, generator=draw) for shape in ((2, 16), (48, 2)))
    for form in (
        "diffusion_model.blocks.3.attn.qkv",
        "blocks.3.attn.qkv",
        "lora_unet_blocks_3_attn_qkv",
    ):
        state = {f"{form}.lora_down.weight": down, f"{form}.lora_up.weight": up}
        save_file(state | {f"{form}.alpha": torch.tensor([1.0])}, tmp_path / "a.safetensors")
        layers = read_lora(tmp_path).layers
        names = [f"transformer_blocks.3.attn1.to_{part}" for part in "qkv"]
        assert list(layers) == names
        product = torch.cat([layers[name].product for name in names])
        torch.testing.assert_close(product, 0.5 * up @ down)
    for ours, theirs in {
        "final_layer.linear": "proj_out",
        "blocks.0.cross_attn.q_linear": "transformer_blocks.0.attn2.to_q",
        "lora_unet_x_embedder_proj": "patch_embed.proj",
        "cfg_embedder.mlp.2": "time_embed.guidance_embedder.linear_2",
    }.items():
        state = {f"{ours}.lora_A.weight": down, f"{ours}.lora_B.weight": up}
        save_file(state, tmp_path / "a.safetensors")
        assert list(read_lora(tmp_path).layers) == [theirs]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_te_model_layers_0_self_attn_q_proj.lora_down.weight", "for the text encoder"),
        ("text_encoder.layers.0.q_proj.lora_A.weight", "for the text encoder"),
        ("lora_unet_down_blocks_0_attn1_to_q.lora_down.weight", "no key of a Sana LoRA"),
        ("lora_unet_transformer_blocks_0_attn1_to_w.lora_down.weight", "did you mean 'attn1_to_"),
        ("lora_unet_transformer_blocks_0_attn1_to_q.lora_mid.weight", "of LoCon"),
        ("lora_unet_transformer_blocks_0_attn1_to_q.dora_scale", "of DoRA"),
        ("transformer_blocks.0.attn1.to_q.lora_magnitude_vector.weight", "of DoRA"),
        ("lycoris_transformer_blocks_0_attn1_to_q.hada_w1_a", "of LoHa"),
        ("lycoris_transformer_blocks_0_attn1_to_q.lokr_w1", "of LoKr"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_B.bias", "trained biases"),
        ("diffusion_model.transformer_blocks.0.attn1.to_q.diff", "whole differences"),
        ("base_model.model.proj_out.modules_to_save.weight", "trained as a whole"),
        ("diffusion_model.transformer_blocks.0.attn1.to_q.weight", "no key of a Sana LoRA; they"),
        ("transformer_blocks.0.attn1.to_q.lora_A.other.weight", "no key of a Sana LoRA; they"),
        ("bundle_emb.x.lora_A", "no key of a Sana LoRA; they"),
    ],
)
def test_any_other_key_is_refused(tmp_path: Path, key: str, message: str):
    save_file({key: torch.ones(2, 16)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        read_lora(tmp_path)
    assert "\n" not in str(caught.value)


def one(prefix: str = "transformer.", **more: Tensor) -> dict[str, Tensor]:
    name = f"{prefix}transformer_blocks.0.attn1.to_q"
    pair = {f"{name}.lora_A.weight": torch.ones(4, 16), f"{name}.lora_B.weight": torch.ones(16, 4)}
    return pair | {f"{name}.{part}": value for part, value in more.items()}


def test_a_layer_under_two_names_is_refused(tmp_path: Path):
    save_file(one() | one("diffusion_model."), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="twice"):
        read_lora(tmp_path)
    fused = {
        "blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 16),
        "blocks.0.attn.qkv.lora_B.weight": torch.ones(48, 2),
    }
    save_file(one() | fused, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"changes 'transformer_blocks.0.attn1.to_q' twice"):
        read_lora(tmp_path)


def test_two_strengths_are_refused_unless_they_agree(tmp_path: Path):
    header = {METADATA: json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})}
    save_file(one(alpha=torch.tensor(2.0)), tmp_path / "a.safetensors", metadata=header)
    [change] = read_lora(tmp_path).layers.values()
    assert change.strength == 0.5
    save_file(one(alpha=torch.tensor(8.0)), tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(WeightsError, match=r"two strengths: 2 by .*alpha', 0.5 by peft"):
        read_lora(tmp_path)


def test_an_alpha_is_one_number(tmp_path: Path):
    save_file(one(alpha=torch.ones(4)), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="must be one number"):
        read_lora(tmp_path)


def test_an_alpha_in_the_header_without_json_is_said(tmp_path: Path):
    for header in ({"lora_alpha": "2"}, {"ss_network_alpha": "2", "ss_network_dim": "4"}):
        save_file(one(), tmp_path / "a.safetensors", metadata=header)
        lora = read_lora(tmp_path)
        assert [change.strength for change in lora.layers.values()] == [1.0]
        [note] = lora.notes
        assert "alpha = '2' is not in the form" in note and "alpha is taken to be the rank" in note
    save_file(one(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert read_lora(tmp_path).notes == ()


def test_peft_keys_without_settings_are_said(tmp_path: Path):
    save_file(one("base_model.model."), tmp_path / "mine.safetensors")
    [note] = read_lora(tmp_path).notes
    assert "no adapter_config.json lies beside it" in note
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 2}')
    for source in (tmp_path, tmp_path / "mine.safetensors"):
        lora = read_lora(source)
        assert not lora.notes
        assert [change.strength for change in lora.layers.values()] == [0.5]
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "use_dora": true}')
    with pytest.raises(WeightsError, match=r"adapter_config.json was trained with use_dora"):
        read_lora(tmp_path)


# ------------------------------------------------------------------ which file of a folder


def test_a_folder_with_one_lora_of_any_name(tmp_path: Path):
    save_file(one(), tmp_path / "flat style v2.Safetensors")
    (tmp_path / "._flat style v2.safetensors").write_bytes(b"macOS")
    (tmp_path / "README.md").write_text("a style")
    assert read_lora(tmp_path).file.name == "flat style v2.Safetensors"
    save_file(one(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"holds 2 files \(flat style.*other.*name the one"):
        read_lora(tmp_path)
    save_file(one(), tmp_path / "pytorch_lora_weights.safetensors")
    assert read_lora(tmp_path).file.name == "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("name", ["a.pt", "a.PTH", "a.bin", "a.CKPT"])
def test_pickles_are_not_opened_whatever_their_case(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError, match="never opened"):
        read_lora(tmp_path / name)


# ------------------------------------------------------------------ number formats


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    ],
    ids=str,
)
def test_every_float_is_widened_exactly(tmp_path: Path, dtype: torch.dtype):
    draw = torch.Generator().manual_seed(4)
    state = {k: torch.randn(v.shape, generator=draw) for k, v in one().items()}
    stored = {key: value.to(dtype) for key, value in state.items()}
    alpha = torch.tensor(2.0).to(dtype)
    name = "transformer.transformer_blocks.0.attn1.to_q"
    save_file(stored | {f"{name}.alpha": alpha}, tmp_path / "a.safetensors")
    [change] = read_lora(tmp_path).layers.values()
    assert torch.equal(change.down, stored[f"{name}.lora_A.weight"].float())
    assert torch.equal(change.up, stored[f"{name}.lora_B.weight"].float())
    assert change.strength == 0.5


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        *((torch.int8, "I8"), (torch.uint8, "U8"), (torch.int32, "I32"), (torch.bool, "BOOL")),
        *((torch.float8_e8m0fnu, "F8_E8M0"), (torch.complex64, "C64"), (torch.uint16, "U16")),
    ],
    ids=str,
)
def test_other_formats_are_named(tmp_path: Path, dtype: torch.dtype, name: str):
    """One of the two matrices is enough."""
    key = next(iter(one()))
    save_file(one() | {key: torch.ones(4, 16).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=name) as caught:
        read_lora(tmp_path)
    assert "a.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_scaled_float8_is_refused(tmp_path: Path):
    scales = {f"{key.removesuffix('weight')}weight_scale": torch.tensor(3.0) for key in one()}
    quantised = {key: value.to(torch.float8_e4m3fn) for key, value in one().items()}
    save_file(quantised | scales, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="scaled weights"):
        read_lora(tmp_path)


def test_a_float8_value_that_is_none_is_damage(tmp_path: Path):
    broken = {key: torch.full_like(value, torch.nan) for key, value in one().items()}
    stored = {key: value.to(torch.float8_e5m2) for key, value in broken.items()}
    save_file(stored, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="holds NaN"):
        read_lora(tmp_path)


def test_an_alpha_of_whole_numbers_is_a_number(tmp_path: Path):
    """Some tools store alpha as an integer, which is no weight."""
    save_file(one(alpha=torch.tensor(2)), tmp_path / "a.safetensors")
    [change] = read_lora(tmp_path).layers.values()
    assert change.strength == 0.5

"""Number formats of weight files: read exactly, or refused in one line that names the format."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opensana.errors import WeightsError
from opensana.models.convert import convert, read_state
from opensana.models.describe import describe
from opensana.models.load import load_autoencoder, load_transformer
from opensana.models.parts import stored_dtype
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.weights.formats import FLOAT8, FLOATS, WHOLE, format_of, widened
from opensana.weights.safetensors import (
    TensorInfo,
    check_finite,
    load_into,
    read_headers,
    read_safetensors,
    write_safetensors,
)
from tests import tiny
from tests.weights.test_rename_tables import official_transformer

FILE = "diffusion_pytorch_model.safetensors"
pytestmark = pytest.mark.usefixtures("one_thread")


def stored(path: Path, name: str, bits: int) -> Path:
    """A file with one tensor `layer.weight` of eight numbers in a format that torch may lack."""
    size = 8 * bits // 8
    entry = {"layer.weight": {"dtype": name, "shape": [8], "data_offsets": [0, size]}}
    text = json.dumps(entry).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\1" * size)
    return path


def every_value(dtype: torch.dtype) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana(instruction="none").save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def rewrite(part: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights of a part again in another format; returns what is then stored, as float32."""
    state = read_safetensors(part)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    write_safetensors(state, part)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


# ------------------------------------------------------------------ read exactly


@pytest.mark.parametrize("name", FLOAT8)
def test_float8_is_widened_to_the_last_bit(tmp_path: Path, name: str) -> None:
    values = every_value(FLOAT8[name])
    [file] = write_safetensors({"w": values}, tmp_path)
    assert read_headers(file)["w"] == TensorInfo((256,), name)
    assert read_headers(file)["w"].bytes == 256
    found = read_safetensors(file)["w"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), values.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", FLOATS | WHOLE)
def test_other_formats_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    value = torch.ones(3, dtype=(FLOATS | WHOLE)[name])
    [file] = write_safetensors({"w": value}, tmp_path)
    assert torch.equal(read_safetensors(file)["w"], value)
    assert widened(value) is value
    assert format_of(value) == name


@pytest.mark.parametrize("name", FLOAT8)
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_a_network_in_float8_is_what_its_file_says(folder: Path, part: str, name: str) -> None:
    expected = rewrite(folder / part, FLOAT8[name])
    load = load_transformer if part == "transformer" else load_autoencoder
    found = load(folder).float().state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    shown = describe(folder, device="cpu")
    assert shown["parts"][part]["dtype"] == name
    assert shown["parts"][part]["bytes"] == sum(
        info.bytes for info in read_headers(folder / part).values()
    )


def test_info_says_of_float8_what_loading_does(folder: Path) -> None:
    plain = describe(folder, device="cpu")
    for part in ("transformer", "vae"):
        rewrite(folder / part, torch.float8_e4m3fn)
    shown = describe(folder, device="cpu")
    assert stored_dtype(folder) == torch.bfloat16
    rewrite(folder / "transformer", torch.bfloat16)
    wide = describe(folder, device="cpu")
    assert (shown["dtype"], shown["computed_in"]) == ("F8_E4M3", wide["computed_in"])
    assert (shown["parameters"], shown["memory"]) == (plain["parameters"], wide["memory"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("name", FLOAT8)
def test_convert_takes_float8(tmp_path: Path, name: str, suffix: str) -> None:
    state = official_transformer(dict(tiny.transformer().state_dict()), sprint=False)
    state = {key: value.to(FLOAT8[name]) for key, value in state.items()}
    file = tmp_path / f"model.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": state}, file)
    else:
        write_safetensors(state, tmp_path, name="model")
    made = convert(file, tmp_path / "made", config=tiny.TRANSFORMER)
    found = read_safetensors(made / "transformer")
    key, ours = "blocks.0.attn.proj.weight", "transformer_blocks.0.attn1.to_out.0.weight"
    assert torch.equal(found[ours].float(), state[key].float())
    assert found[ours].dtype == torch.bfloat16


@pytest.mark.parametrize("name", FLOAT8)
def test_no_number_in_float8_is_found(name: str) -> None:
    values = every_value(FLOAT8[name])
    broken = bool(values.float().isnan().any())
    assert broken  # every format has a code for it
    with pytest.raises(WeightsError, match="'w' holds NaN"):
        check_finite({"w": values}, where="x")
    check_finite({"w": values[values.float().isfinite()]}, where="x")


# ------------------------------------------------------------------ refused

UNREAD = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "C64": 64, "U16": 16, "U64": 64}


@pytest.mark.parametrize("name", UNREAD)
def test_a_format_that_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    file = stored(tmp_path / "model.safetensors", name, UNREAD[name])
    assert read_headers(file)["layer.weight"].bytes == UNREAD[name]
    for read in (read_safetensors, read_state):
        with pytest.raises(WeightsError, match=f"'layer.weight' is stored as {name}, which"):
            read(file)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_whole_numbers_in_place_of_weights_are_named(folder: Path, part: str, name: str) -> None:
    state = read_safetensors(folder / part)
    key = next(key for key, value in state.items() if value.ndim == 2)
    write_safetensors(state | {key: state[key].to(WHOLE[name])}, folder / part)
    load = load_transformer if part == "transformer" else load_autoencoder
    line = f"{part}: '{key}' is stored as {name}, whole numbers where the model has weights"
    for read in (load, describe):
        with pytest.raises(WeightsError, match=line):
            read(folder)


def odd_tensors() -> dict[str, Tensor]:
    matrix = torch.eye(16)
    return {
        "complex64": matrix.to(torch.complex64),
        "uint16": matrix.to(torch.uint16),
        "float8_e8m0fnu": matrix.to(torch.float8_e8m0fnu),
        "float4_e2m1fn_x2": torch.zeros(16, 16, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "sparse_coo": matrix.to_sparse(),
        "I8": matrix.to(torch.int8),
    }


@pytest.mark.parametrize("name", odd_tensors())
def test_a_pth_names_what_it_cannot_give(tmp_path: Path, name: str) -> None:
    state = official_transformer(dict(tiny.transformer().state_dict()), sprint=False)
    state["blocks.0.attn.proj.weight"] = odd_tensors()[name]
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=rf"model\.pth: '.+' is stored as {name}, ") as caught:
        convert(tmp_path / "model.pth", tmp_path / "made", config=tiny.TRANSFORMER)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_counters_may_be_whole() -> None:
    module = nn.BatchNorm1d(2)
    state = dict(module.state_dict())
    assert state["num_batches_tracked"].dtype == torch.int64
    load_into(module, state, where="x")


SCALED = {  # as ComfyUI, compressed-tensors, DeepSeek and ModelOpt write them
    "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
    "model.diffusion_model.scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn),
    "blocks.0.attn.proj.scale_weight": torch.tensor(0.5),
    "blocks.0.attn.proj.weight_scale": torch.tensor([0.5]),
    "blocks.0.attn.proj.weight_scale_inv": torch.ones(1, 1),
    "blocks.0.attn.proj.comfy_quant": torch.zeros(8, dtype=torch.uint8),
}


def test_the_scales_of_8_bit_matrices_are_read(tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 4, dtype=torch.int8), "a.weight_scale": torch.ones(2, 1)}
    write_safetensors(state, tmp_path)
    assert set(read_safetensors(tmp_path)) == set(state)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("key", SCALED)
def test_a_scaled_file_is_refused_as_one(tmp_path: Path, key: str, suffix: str) -> None:
    state = official_transformer(dict(tiny.transformer().state_dict()), sprint=False)
    state = {name: value.to(torch.float8_e4m3fn) for name, value in state.items()}
    state[key] = SCALED[key]
    if suffix == "pth":
        torch.save(state, tmp_path / "model.pth")
    else:
        write_safetensors(state, tmp_path, name="model")
    with pytest.raises(WeightsError, match=rf"holds scaled weights \('{key}'\), such as scaled"):
        convert(tmp_path / f"model.{suffix}", tmp_path / "made", config=tiny.TRANSFORMER)


def test_a_scaled_transformer_is_refused_by_loading_and_info(folder: Path) -> None:
    part = folder / "transformer"
    rewrite(part, torch.float8_e4m3fn)
    key = "transformer_blocks.0.attn1.to_q"
    state = read_safetensors(part)
    write_safetensors(state | {f"{key}.scale_weight": torch.tensor(0.5)}, part)
    for read in (load_transformer, describe):
        with pytest.raises(WeightsError, match=rf"scaled weights \('{key}.scale_weight'\)"):
            read(folder)


def test_a_text_encoder_of_other_numbers_is_refused(folder: Path) -> None:
    part = folder / "text_encoder"
    state = read_safetensors(part)
    key = "layers.0.mlp.down_proj.weight"
    narrow = {k: v.to(torch.float8_e4m3fn) for k, v in state.items()}
    write_safetensors(narrow, part, name="model")
    assert describe(folder)["parts"]["text_encoder"]["dtype"] == "F8_E4M3"
    Sana.load(folder, device="cpu").draw_latents(Request("x", steps=1))
    whole = {**state, key: state[key].to(torch.int8)}
    scaled = {**narrow, f"{key}_scale": torch.tensor(0.5)}
    for odd, line in ((whole, f"'{key}' is stored as I8"), (scaled, "scaled weights")):
        write_safetensors(odd, part, name="model")
        for read in (describe, Sana.load):
            with pytest.raises(WeightsError, match=line):
                read(folder, device="cpu")

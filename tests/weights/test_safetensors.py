"""Safetensors files: every layout that is read, every way in which one can be broken.

Also tests `files/writing.py`.
"""

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from opensana.errors import OpensanaError, WeightsError
from opensana.files.writing import read_json, write_atomic
from opensana.weights import safetensors as weights
from opensana.weights.safetensors import (
    available_variants,
    check_finite,
    load_into,
    read_headers,
    read_onto,
    read_safetensors,
    write_safetensors,
)
from tests.launches import Launches

STATE = {
    "b.weight": torch.arange(6.0).reshape(2, 3),
    "a.bias": torch.tensor([1.0, -2.0]),
    "a.count": torch.tensor(3),
}
FILE = "diffusion_pytorch_model.safetensors"


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_one_file_goes_round(tmp_path: Path) -> None:
    assert write_safetensors(STATE, tmp_path / "new") == [tmp_path / "new" / FILE]
    assert same(read_safetensors(tmp_path / "new"), STATE)
    assert same(read_safetensors(tmp_path / "new" / FILE), STATE)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [FILE]


@pytest.mark.parametrize("variant", [None, "fp16", "bf16"])
def test_shards_go_round(tmp_path: Path, variant: str | None) -> None:
    files = write_safetensors(STATE, tmp_path, max_shard_bytes=24, variant=variant)
    stem = "diffusion_pytorch_model" + (f".{variant}" if variant else "")
    index = "diffusion_pytorch_model.safetensors.index" + (f".{variant}" if variant else "")
    assert [file.name for file in files] == [
        f"{stem}-00001-of-00002.safetensors",
        f"{stem}-00002-of-00002.safetensors",
        f"{index}.json",
    ]
    assert same(read_safetensors(tmp_path, variant=variant), STATE)
    assert read_json(files[-1])["metadata"]["total_size"] == 24 + 8 + 8


def test_straight_onto_a_device_in_its_format(tmp_path: Path) -> None:
    wide = STATE | {"c.weight": torch.tensor([[0.1, 1e38]]), "d": torch.zeros(0)}
    write_safetensors(wide, tmp_path, max_shard_bytes=24)
    found = read_onto(torch.device("cpu"), torch.bfloat16, tmp_path)
    assert same(found, {k: v.bfloat16() if v.is_floating_point() else v for k, v in wide.items()})
    half = read_onto(torch.device("cpu"), torch.float16, tmp_path)
    assert half["c.weight"].isinf().any(), "what is stored is looked at, as when it is read at once"


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_straight_onto_a_device_damage_is_named(tmp_path: Path, bad: float) -> None:
    write_safetensors(STATE | {"c": torch.tensor([1.0, bad]).half()}, tmp_path)
    with pytest.raises(WeightsError, match="'c' holds NaN or infinite values"):
        read_onto(torch.device("cpu"), torch.float32, tmp_path)


class Opened:
    """Opens a file on the CPU, remembers where it should have been, and gives shapes alone."""

    asked: list[str]

    def __init__(self, file: Path, *, framework: str, device: str) -> None:
        Opened.asked.append(device)
        self.handle = safe_open(file, framework=framework, device="cpu")

    def __enter__(self) -> "Opened":
        self.handle.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.__exit__(*error)

    def keys(self) -> list[str]:
        return list(self.handle.keys())

    def get_slice(self, key: str) -> object:
        return self.handle.get_slice(key)

    def get_tensor(self, key: str) -> Tensor:
        return self.handle.get_tensor(key).to("meta")


def test_cuda_is_read_to_and_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_safetensors(STATE | {f"{n}.weight": torch.ones(2, 2) for n in range(9)}, tmp_path)
    Opened.asked = []
    monkeypatch.setattr(weights, "safe_open", Opened)
    with Launches() as seen:
        state = read_onto(torch.device("cuda:1"), torch.bfloat16, tmp_path)
    assert Opened.asked == ["cpu", "cuda:1"], "the header first"
    assert len(seen.host_reads) == 1 and len(state) == 12
    assert state["0.weight"].dtype == torch.bfloat16 and state["a.count"].dtype == torch.int64


def test_what_is_on_a_gpu_is_looked_at_with_one_wait() -> None:
    class OnGpu(Tensor):
        """Has numbers, and says that they are on a GPU."""

        @property
        def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
            return torch.device("cuda")

        def tolist(self) -> list[bool]:
            reads.append(len(self))
            return super().tolist()

    reads: list[int] = []
    state = {str(n): torch.ones(3).as_subclass(OnGpu) for n in range(5)}
    check_finite(state | {"whole": torch.tensor(3)}, where="here")
    assert reads == [5]
    state["3"] = torch.tensor([float("nan")]).half().as_subclass(OnGpu)
    with pytest.raises(WeightsError, match="'3' holds NaN"):
        check_finite(state, where="here")


def test_diffusers_reads_our_shards(tmp_path: Path) -> None:
    from diffusers import AutoencoderDC  # pyright: ignore[reportPrivateImportUsage]

    config: dict = {
        "encoder_block_out_channels": (4, 8),
        "decoder_block_out_channels": (4, 8),
        "encoder_block_types": "ResBlock",
        "decoder_block_types": "ResBlock",
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), ()),
        "decoder_qkv_multiscales": ((), ()),
        "latent_channels": 4,
    }
    model = AutoencoderDC(**config)
    model.save_config(tmp_path)
    state = dict(model.state_dict())
    write_safetensors(state, tmp_path, max_shard_bytes=2000, variant="bf16")
    theirs = AutoencoderDC.from_pretrained(tmp_path, variant="bf16")
    assert same(dict(theirs.state_dict()), state)


def test_a_variant_must_be_chosen_unless_there_is_one(tmp_path: Path) -> None:
    write_safetensors(STATE, tmp_path, variant="fp16")
    assert same(read_safetensors(tmp_path), STATE)
    write_safetensors(STATE, tmp_path, variant="bf16")
    assert available_variants(tmp_path) == ["fp16", "bf16"]
    with pytest.raises(WeightsError, match="choose one"):
        read_safetensors(tmp_path)
    write_safetensors({"plain": torch.zeros(1)}, tmp_path)
    assert list(read_safetensors(tmp_path)) == ["plain"]


def test_a_new_write_leaves_no_old_file(tmp_path: Path) -> None:
    write_safetensors(STATE, tmp_path, max_shard_bytes=1)
    write_safetensors(STATE, tmp_path, variant="fp16")
    write_safetensors({"new": torch.zeros(1)}, tmp_path)
    assert list(read_safetensors(tmp_path)) == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "diffusion_pytorch_model.fp16.safetensors",
        FILE,
    ]


def test_headers_tell_shapes_without_weights(tmp_path: Path) -> None:
    write_safetensors(STATE, tmp_path, max_shard_bytes=24)
    headers = read_headers(tmp_path)
    assert headers["b.weight"].shape == (2, 3)
    assert (headers["b.weight"].dtype, headers["b.weight"].bytes) == ("F32", 24)
    assert headers["a.count"].size == 1


# ------------------------------------------------------------------ broken files


def header(length: int, content: bytes) -> bytes:
    return struct.pack("<Q", length) + content


def one_tensor(start: int, end: int, dtype: str = "F32") -> bytes:
    entry = {"a": {"dtype": dtype, "shape": [2], "data_offsets": [start, end]}}
    text = json.dumps(entry).encode()
    return header(len(text), text)


BROKEN = {
    "empty": b"",
    "header too long": header(2**63, b"{}"),
    "header cut": header(100, b"{}"),
    "no JSON": header(4, b"abcd"),
    "data cut": one_tensor(0, 8) + b"\0" * 4,
    "data missing": one_tensor(0, 8),
    "data left over": one_tensor(0, 8) + b"\0" * 40,
    "wrong size": one_tensor(0, 6) + b"\0" * 6,
    "negative": one_tensor(-4, 4) + b"\0" * 8,
    "unknown dtype": one_tensor(0, 8, "F99") + b"\0" * 8,
    "a pickle": b"\x80\x04\x95canary.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / FILE).write_bytes(BROKEN[name])
    with pytest.raises(WeightsError, match=f"{FILE} is damaged"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, keep: float) -> None:
    [file] = write_safetensors({"a": torch.randn(1000)}, tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        read_safetensors(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    files = write_safetensors(STATE, tmp_path, max_shard_bytes=24)
    files[0].unlink()
    with pytest.raises(WeightsError, match="00001-of-00002"):
        read_safetensors(tmp_path)


def test_a_tensor_lost_from_a_shard_is_named(tmp_path: Path) -> None:
    files = write_safetensors(STATE, tmp_path, max_shard_bytes=24)
    index = json.loads(files[-1].read_text())
    index["weight_map"]["ghost"] = files[0].name
    files[-1].write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="'ghost'"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/x.safetensors", "shard.bin"])
def test_an_index_cannot_point_elsewhere(tmp_path: Path, name: str) -> None:
    index = tmp_path / f"{FILE}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(WeightsError, match="not the name of a safetensors file"):
        read_safetensors(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / f"{FILE}.index.json").write_text(text)
    with pytest.raises(WeightsError, match=r"index\.json"):
        read_safetensors(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file or folder"):
        read_safetensors(tmp_path / "none")
    with pytest.raises(WeightsError, match="no safetensors weights"):
        read_safetensors(tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(WeightsError, match="no safetensors weights"):
        read_safetensors(tmp_path)


# ------------------------------------------------------------------ into a module


def model() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def fitting() -> dict[str, Tensor]:
    return dict(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict())


def test_a_meta_module_takes_the_tensors() -> None:
    module, state = model(), fitting()
    load_into(module, state, where="here")
    assert same(dict(module.state_dict()), state)
    assert all(value.requires_grad for value in module.parameters())


def test_every_misfit_names_file_and_key() -> None:
    def message(**changes: Tensor | None) -> str:
        state = {**fitting(), **{k.replace("_", ".", 1): v for k, v in changes.items()}}
        with pytest.raises(WeightsError) as caught:
            load_into(model(), {k: v for k, v in state.items() if v is not None}, where="a/b")
        assert str(caught.value).startswith("a/b: ")
        return str(caught.value)

    assert "missing '0.weight'" in message(**{"0_weight": None})
    assert "unexpected '0.wieght' (did you mean '0.weight'?)" in message(
        **{"0_wieght": torch.zeros(2, 3)}
    )
    assert "'0.bias' has the shape (3,), the model needs (2,)" in message(
        **{"0_bias": torch.zeros(3)}
    )
    for bad in ("nan", "inf", "-inf"):
        weight = torch.zeros(2, 3)
        weight[1, 2] = float(bad)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert "'0.weight' holds NaN" in message(**{"0_weight": weight.to(dtype)})


def test_a_failed_load_changes_nothing() -> None:
    module = nn.Linear(3, 2)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(WeightsError):
        load_into(module, {"weight": torch.ones(2, 3)}, where="x")
    assert same(dict(module.state_dict()), before)


# ------------------------------------------------------------------ atomic writes


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def half(temporary: Path) -> None:
        temporary.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(target, half)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("length", [1, 234, 255])
def test_a_name_may_have_all_that_the_system_allows(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("a" * length)
    write_atomic(path, lambda temporary: temporary.write_text("whole"))
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [
        (path.name, "whole")
    ]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OpensanaError, match="cannot be written"):
        write_atomic(tmp_path / "file", lambda temporary: temporary.write_text("x"))


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    [file] = write_safetensors(STATE, tmp_path)
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode

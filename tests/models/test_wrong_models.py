"""Folders that are no Sana model, or a broken or hostile one, through the command line.

Each is one line on stderr and an exit code, found before anything large is read or built.
"""

import contextlib
import json
import os
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from opensana.cli import main
from opensana.errors import OpensanaError
from opensana.models.load import load_autoencoder, load_transformer
from opensana.weights.safetensors import read_safetensors, write_safetensors
from tests import tiny
from tests.configs import HOSTILE

SECONDS = 1.0
BYTES = 200e6
NAME = "diffusion_pytorch_model.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.sana(instruction="none").save(tmp_path_factory.mktemp("models") / "tiny")
    # What is imported once belongs to no model.
    assert (
        main(["generate", "x", "-m", str(folder), "-o", f"{folder.parent}/", "--steps", "1"]) == 0
    )
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def peak() -> int:
    """The most bytes that this process has held since the last `forget_peak`; 0 if unknown."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def forget_peak() -> None:
    if os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The one line in which `generate` refuses a model; nothing is drawn."""
    capsys.readouterr()
    forget_peak()
    before, start = peak(), time.process_time()
    output = folder.parent / "out.png"
    code = main(["generate", "x", "-m", str(folder), "-o", str(output), "--steps", "1", *flags])
    seconds, taken = time.process_time() - start, peak() - before
    captured = capsys.readouterr()
    assert code in (1, 2)
    assert captured.out == ""
    assert not output.exists()
    [loading, line] = captured.err.splitlines()
    assert loading.startswith("opensana: loading")
    assert "Traceback" not in line and "--debug" not in line  # foreseen
    assert seconds < SECONDS
    assert taken < BYTES
    return line


# ------------------------------------------------------------------ of another architecture

OTHERS = {
    "FLUX": ("FluxPipeline", "FluxTransformer2DModel", {"guidance_embeds": True}),
    "SD3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel", {"joint_attention_dim": 4096}),
    "PixArt": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", {"norm_type": "ada_norm_single"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pipeline, transformer, values = OTHERS[name]
    config = {"_class_name": transformer, "num_layers": 2, **values}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    assert f"holds a {transformer}, expected a SanaTransformer2DModel" in refusal(folder, capsys)
    edit(folder / "model_index.json", _class_name=pipeline)
    line = refusal(folder, capsys)
    assert f"is a {pipeline}: opensana draws with SanaPipeline and SanaSprintPipeline" in line


def test_another_autoencoder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256], "act_fn": "silu"}
    (folder / "vae" / "config.json").write_text(json.dumps(config))
    assert "holds a AutoencoderKL, expected a AutoencoderDC" in refusal(folder, capsys)


def test_another_transformer_without_a_class_name(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "transformer" / "config.json").write_text('{"joint_attention_dim": 4096}')
    assert "unknown transformer key 'joint_attention_dim'" in refusal(folder, capsys)


# ------------------------------------------------------------------ broken files


def sharded(part: Path) -> list[Path]:
    """The weights of a part again, in three shards."""
    state = read_safetensors(part)
    size = sum(value.numel() * value.element_size() for value in state.values())
    return write_safetensors(state, part, max_shard_bytes=size / 2.5)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("fault", [cut, Path.unlink], ids=["truncated", "missing"])
def test_a_broken_shard_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str, fault: Callable[[Path], object]
) -> None:
    shard = sharded(folder / part)[1]
    fault(shard)
    line = refusal(folder, capsys)
    assert shard.name in line
    assert "fetch" in line


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str, value: str
) -> None:
    [file] = (folder / part).glob("*.safetensors")
    state = read_safetensors(file)
    key = next(key for key in sorted(state) if state[key].ndim == 2)
    state[key][0, 0] = float(value)
    write_safetensors(state, folder / part, name=file.stem)
    line = refusal(folder, capsys)
    assert f"{part}: '{key}' holds NaN or infinite values" in line


HEADERS = {
    "2^63": struct.pack("<Q", 2**63),
    "1 TB": struct.pack("<Q", 10**12) + b"{}",
    "empty": b"",
    "a pickle": b"\x80\x04\x95" + b"\0" * 100,
    "a web page": b"<!doctype html><html>" * 10,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("header", HEADERS)
def test_a_file_that_is_none_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str, header: str
) -> None:
    [file] = (folder / part).glob("*.safetensors")
    file.write_bytes(HEADERS[header])
    assert part in refusal(folder, capsys)


class Canary:
    """Unpickling it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_pickle_is_never_opened(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str, tmp_path: Path
) -> None:
    [file] = (folder / part).glob("*.safetensors")
    file.unlink()
    torch.save({"weight": Canary(tmp_path / "canary")}, file.with_suffix(".bin"))
    assert "safetensors" in refusal(folder, capsys)
    assert not (tmp_path / "canary").exists()


# ------------------------------------------------------------------ hostile configurations


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("transformer", "num_layers"),
        ("transformer", "num_attention_heads"),
        ("transformer", "sample_size"),
        ("vae", "latent_channels"),
        ("text_encoder", "num_hidden_layers"),
        ("text_encoder", "hidden_size"),
        ("text_encoder", "vocab_size"),
    ],
)
def test_monstrous_sizes_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str, key: str
) -> None:
    edit(folder / part / "config.json", **{key: 10**9})
    assert "1000000000" in refusal(folder, capsys)


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_no_value_of_a_configuration_is_a_surprise(folder: Path, part: str) -> None:
    """Each is refused in words, or gives a network of the same shape."""
    load = load_transformer if part == "transformer" else load_autoencoder
    path = folder / part / "config.json"
    values = json.loads(path.read_text())
    for key in (key for key in values if not key.startswith("_")):
        for value in HOSTILE:
            path.write_text(json.dumps(values | {key: value}))
            with contextlib.suppress(OpensanaError):
                load(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_configuration_nested_without_end(
    folder: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    (folder / part / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    assert "config.json" in refusal(folder, capsys)


@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_code_and_paths_in_a_configuration_do_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, part: str
) -> None:
    canary = tmp_path / "canary"
    (folder / part / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    edit(folder / part / "config.json", _name_or_path="/etc/passwd")
    output = str(tmp_path / "fine.png")
    assert main(["generate", "x", "-m", str(folder), "-o", output, "--steps", "1"]) == 0
    edit(folder / part / "config.json", auto_map={"AutoModel": "evil.Evil"}, model_type="evil")
    assert refusal(folder, capsys)
    assert not canary.exists()


def test_an_index_does_not_leave_its_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = sharded(folder / "transformer")[-1]
    names = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map=dict.fromkeys(names, "../../../etc/passwd"))
    assert "is not the name of a safetensors file" in refusal(folder, capsys)


# ------------------------------------------------------------------ half precision


def test_fp16_weights_are_computed_in_float32_on_a_cpu_and_info_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = read_safetensors(folder / "transformer")
    (folder / "transformer" / NAME).unlink()
    half = {key: value.half() for key, value in state.items()}
    write_safetensors(half, folder / "transformer", variant="fp16")
    assert main(["info", str(folder), "--device", "cpu", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["dtype"], shown["computed_in"]) == ("F16", "float32")
    assert "does not work on a CPU" in refusal(folder, capsys, "--device", "cpu", "--dtype", "fp16")
    output = folder.parent / "fine.png"
    line = ["generate", "x", "-m", str(folder), "-o", str(output), "--device", "cpu", "--json"]
    assert main([*line, "--steps", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"

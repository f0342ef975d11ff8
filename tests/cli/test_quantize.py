"""`opensana quantize`: the folder that it writes, its report, and what it refuses.

Also tests `models/quantised.py` and `evaluate/quantised.py`.
"""

import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Gemma2Model

from opensana.cli import main
from opensana.errors import ConfigError
from opensana.models.parts import quantization
from opensana.models.quantised import parse_parts
from opensana.pipeline import Sana
from opensana.runtime.quantize import Quantization, quantization_of
from opensana.text.encoder import TextEncoder
from tests import tiny
from tests.gguf_files import write_gemma

pytestmark = pytest.mark.filterwarnings("ignore:.* saves memory here, not time")
MORE = 2 * 2**30


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana().save(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two GiB beside what the process has: tiny models need some MB, what has no end fails."""
    if sys.platform != "linux":
        pytest.skip("limits address space as Linux counts it")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
def test_a_folder_and_its_report(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    line = ["quantize", str(plain), "--to", str(made), "--scheme", "w8", "--parts"]
    texts = ["--prompt", "a cat", "--prompt", "a|b", "--steps", "2"]
    assert main([*line, "transformer,text", *texts]) == 0
    assert capsys.readouterr().out == f"{made}\n"
    report = json.loads((made / "report.json").read_text())
    assert report["scheme"]["scheme"] == "w8"
    assert set(report["velocity_error"]) == {"0.9", "0.7", "0.5", "0.3", "0.1"}
    assert all(0 < error < 0.05 for error in report["velocity_error"].values())
    assert len(report["layers"]) == 16  # eight in each of two blocks
    assert all(layer["cosine"] > 0.999 for layer in report["layers"].values())
    assert set(report["text"]) == set(report["pictures"]) == {"a cat", "a|b"}
    assert all(0 < found["error"] < 0.05 for found in report["text"].values())
    assert all(value > 15 for value in report["pictures"].values())
    for part in ("transformer", "text_encoder"):
        assert quantization(made / part) is not None
        assert report["bytes"][part]["after"] < report["bytes"][part]["before"]
    assert report["bytes"]["vae"]["after"] == report["bytes"]["vae"]["before"]
    page = (made / "report.md").read_text()
    assert page.startswith("# w8\n\n| part | bytes before | after |\n| --- | --- | --- |\n")
    assert "| a\\|b | " in page
    with Image.open(made / "report.png") as sheet:
        assert sheet.width < 2 * sheet.height  # two pictures beside, two below


def test_what_was_written_draws_and_is_described(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    line = ["quantize", str(plain), "--to", str(made), "--scheme", "w4", "--no-report", "--json"]
    assert main([*line, "--parts", "transformer,text", "--rank", "0"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["folder"] == str(made) and "velocity_error" not in printed
    assert not (made / "report.json").exists()
    sana = Sana.load(made, device="cpu")
    assert quantization_of(sana.transformer) == Quantization("w4", 0)
    sanas = (Sana.load(made, device="cpu") for _ in range(2))
    drawn, again = (one.generate("a cat", seed=3, steps=2) for one in sanas)
    assert drawn[0].image.tobytes() == again[0].image.tobytes()
    assert main(["info", str(made), "--json", "--device-memory", "1GiB"]) == 0
    described = json.loads(capsys.readouterr().out)
    parts = described["parts"]
    assert (parts["transformer"]["scheme"], parts["text_encoder"]["scheme"]) == ("w4", "w8")
    assert parts["text_encoder"]["parameters"] == sum(p.numel() for p in tiny.gemma().parameters())
    assert [(row["transformer"], row["text"]) for row in described["schemes"]] == [("w4", "8 bits")]


def test_a_lora_is_merged_before(plain: Path, tmp_path: Path) -> None:
    name, lora = "transformer.transformer_blocks.0.attn1.to_q", tmp_path / "lora.safetensors"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, lora)
    line = ["quantize", str(plain), "--scheme", "w8", "--no-report", "--to"]
    assert main([*line, str(tmp_path / "whole"), "--lora", str(lora)]) == 0
    assert main([*line, str(tmp_path / "half"), "--lora", str(lora), "--lora-scale", "0.5"]) == 0
    bare = load_file(plain / "transformer" / "diffusion_pytorch_model.safetensors")
    layer = name.removeprefix("transformer.")
    for folder, scale in (("whole", 1), ("half", 0.5)):
        file = tmp_path / folder / "transformer" / "diffusion_pytorch_model.safetensors"
        state = load_file(file)
        found = state[f"{layer}.weight"].float() * state[f"{layer}.weight_scale"]
        expected = bare[f"{layer}.weight"] + scale * (up @ down)
        assert (found - expected).norm() < 0.01 * expected.norm()


def test_a_text_encoder_keeps_its_states_and_transformers_refuses_it(
    plain: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    line = ["quantize", str(plain), "--to", str(made), "--scheme", "w8a8", "--parts", "text"]
    assert main([*line, "--prompt", "a cat", "--steps", "1"]) == 0
    report = json.loads((made / "report.json").read_text())
    assert report["scheme"] == {"scheme": "w8"} and "layers" not in report
    assert quantization(made / "transformer") is None
    found, expected = (TextEncoder.load(part).encode(["a cat"]).states for part in (made, plain))
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()
    # It only warns of the method; the shapes of the tensors are what it refuses.
    for kind in (AutoModel, Gemma2Model):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            kind.from_pretrained(made / "text_encoder")


def test_wrong_use_is_one_line_and_nothing_is_written(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, again = tmp_path / "made", tmp_path / "again"
    line = ["--scheme", "w4", "--no-report", "--to"]
    assert main(["quantize", str(plain), *line, str(made), "--parts", "transformer,text"]) == 0
    wide = tiny.transformer(replace(tiny.TRANSFORMER, caption_channels=64))
    gguf = replace(tiny.sana(), transformer=wide).save(tmp_path / "gguf")
    (gguf / "text_encoder" / "model.safetensors").unlink()
    write_gemma(gguf / "text_encoder" / "a.gguf", "gemma3")
    llama = tiny.sana().save(tmp_path / "llama")
    config = llama / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llama"}))
    bad = tmp_path / "bad.safetensors"
    name = "transformer.transformer_blocks.0.attn1.to_q"
    thin = {f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(16, 2)}
    save_file(thin, bad)
    cases = [
        ([str(made)], "quantised already (w4); name the plain one"),
        ([str(made), "--parts", "text"], "is quantised already; name the plain one"),
        ([str(gguf), "--parts", "text"], "is a GGUF file, in 8 bits already"),
        (["emoji-256", "--parts", "text"], "is a package, in 8 bits already"),
        ([str(llama), "--parts", "text"], "is 'llama', and only gemma2, gemma3_text"),
        ([str(plain), "--lora", str(bad)], "it belongs to another architecture"),
        ([str(plain), "--lora", str(bad), "--parts", "text"], "which is not among the parts"),
        ([str(plain), "--rank", "-1"], "rank must be 0 or more, got -1"),
    ]
    capsys.readouterr()
    for arguments, message in cases:
        assert main(["quantize", *arguments, *line, str(again)]) in (1, 2), arguments
        *_, said = capsys.readouterr().err.splitlines()
        assert message in said
        assert sorted(path.name for path in tmp_path.glob("*again*")) == []


def test_parts_are_named() -> None:
    assert parse_parts("text, transformer") == ("text", "transformer")
    with pytest.raises(ConfigError, match="no such part 'vae'"):
        parse_parts("vae")
    with pytest.raises(ConfigError, match="no part to quantise"):
        parse_parts(",")

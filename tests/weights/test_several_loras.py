"""Several LoRAs at once: each at its own scale, recorded, and the same when drawn again."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from opensana.cli.app import parse
from opensana.cli.generate import Generate
from opensana.drawing.picture import Picture, read_note
from opensana.errors import ConfigError, RequestError
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.placing import prepare_for_inference
from opensana.weights.lora import (
    Lora,
    MergedLora,
    lora_provenance,
    merge_lora,
    paired,
    read_lora,
)
from tests import tiny
from tests.weights.test_lora import velocity

LOAD: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
SIZE: dict[str, Any] = {"seed": 3, "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana().save(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def loras(tmp_path: Path) -> list[str]:
    return [
        lora(tmp_path / "a.safetensors", "to_q", 1),
        lora(tmp_path / "b.safetensors", "to_v", 2),
    ]


def lora(file: Path, layer: str, seed: int, metadata: dict[str, str] | None = None) -> str:
    draw = torch.Generator().manual_seed(seed)
    names = [
        f"transformer.transformer_blocks.{i}.attn1.{part}"
        for i in (0, 1)
        for part in (layer, "to_k")
    ]
    state = {f"{name}.lora_A.weight": torch.randn(2, 16, generator=draw) for name in names}
    state |= {f"{name}.lora_B.weight": torch.randn(16, 2, generator=draw) for name in names}
    save_file(state, file, metadata=metadata)
    return str(file)


def test_each_is_merged_at_its_scale(model: Path, loras: list[str]):
    sana = Sana.load(model, lora=loras, lora_scale=(0.5, -0.25), **LOAD)
    expected = tiny.transformer()
    for path, scale in zip(loras, (0.5, -0.25), strict=True):
        merge_lora(expected, read_lora(path), scale=scale)
    prepare_for_inference(expected, torch.device("cpu"), torch.float32)
    assert torch.equal(velocity(sana.transformer), velocity(expected))
    assert sana.provenance == {
        "lora_name": ["a", "b"],
        "lora_sha256": [read_lora(path).sha256 for path in loras],
        "lora_scale": [0.5, -0.25],
    }


def test_without_scales_all_are_merged_whole(model: Path, loras: list[str]):
    sana = Sana.load(model, lora=[Path(loras[0]), read_lora(loras[1])], **LOAD)
    again = Sana.load(model, lora=loras, lora_scale=[1.0, 1.0], **LOAD)
    assert sana.provenance == again.provenance
    assert torch.equal(velocity(sana.transformer), velocity(again.transformer))


def test_one_is_recorded_by_plain_values(model: Path, loras: list[str]):
    digest = read_lora(loras[0]).sha256
    for options in (
        {"lora": loras[0]},
        {"lora": (loras[0],)},
        {"lora": loras[0], "lora_scale": [1]},
    ):
        assert Sana.load(model, **options, **LOAD).provenance == {
            "lora_name": "a",
            "lora_sha256": digest,
            "lora_scale": 1.0,
        }
    assert Sana.load(model, lora=[], **LOAD).provenance == {}


@pytest.mark.parametrize(
    ("count", "scales"), [(2, 0.5), (2, (1.0,)), (1, (1.0, 1.0)), (0, 0.5), (0, (1.0,))]
)
def test_scales_are_one_for_each_or_none(loras: list[str], count: int, scales: Any):
    with pytest.raises(ConfigError, match=rf"values for {count} LoRAs; give one for each"):
        paired(loras[:count], scales)
    with pytest.raises(ConfigError, match="must be a finite number"):
        paired(loras, (1.0, float("nan")))


def test_notes_of_a_file_are_a_warning(tmp_path: Path, model: Path):
    path = lora(tmp_path / "c.safetensors", "to_q", 1, {"lora_alpha": "16"})
    with pytest.warns(UserWarning, match="alpha is taken to be the rank") as caught:
        Sana.load(model, lora=path, **LOAD)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # whoever has read it has the notes
        Sana.load(model, lora=read_lora(path), **LOAD)


# ------------------------------------------------------------------ the command


def flags(*words: str) -> Generate:
    return drawn_again("a cat", *words)


def drawn_again(*words: str) -> Generate:
    command = parse(["generate", *words])
    assert isinstance(command, Generate)
    return command


def test_flags_may_be_repeated(loras: list[str]):
    first, second = loras
    command = flags("--lora", first, "--lora-scale", "0.8", "--lora", second, "--lora-scale", "-1")
    assert (command.lora, command.lora_scales) == ((first, second), [0.8, -1.0])
    assert [one.file for one in command.loras] == [Path(first), Path(second)]
    assert flags("--lora", first, "--lora", second).lora_scales == []
    for words in (
        ["--lora-scale", "1"],
        ["--lora", first, "--lora-scale", "1", "--lora-scale", "2"],
    ):
        with pytest.raises(ConfigError, match=r"lora_scale has . values for . LoRAs; give one"):
            flags(*words).inputs()
    with pytest.raises(ConfigError, match="lora_scale has 1 values for 2 LoRAs; give one for each"):
        flags("--lora", first, "--lora", second, "--lora-scale", "1").inputs()


def test_the_command_hands_over_what_it_has_read(
    tmp_path: Path, loras: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    loads: list[dict[str, Any]] = []

    def load(_model: str, **options: Any) -> None:
        loads.append(options)
        raise RequestError("far enough")

    monkeypatch.setattr(Sana, "load", load)
    noted = lora(tmp_path / "c.safetensors", "to_q", 1, {"alpha": "16"})
    with pytest.raises(RequestError, match="far enough"):
        flags("--lora", loras[0], "--lora", noted, "--lora-scale", "2", "--lora-scale", "3").run()
    [options] = loads
    assert [type(one) for one in options["lora"]] == [Lora, Lora]
    assert options["lora_scale"] == [2.0, 3.0]
    said = capsys.readouterr().err
    assert said.count("alpha is taken to be the rank") == 1


def test_a_picture_of_two_is_drawn_again(tmp_path: Path, model: Path, loras: list[str]):
    first, second = loras
    sana = Sana.load(model, lora=loras, lora_scale=(0.5, 2.0), **LOAD)
    [picture] = sana.generate("a cat", **SIZE)
    drawn = picture.save(tmp_path / "drawn.png")
    note = read_note(drawn)
    assert note["lora_scale"] == [0.5, 2.0] and len(note["lora_sha256"]) == 2

    png = ["--from-png", str(drawn)]
    command = drawn_again(*png, "--lora", first, "--lora", second)
    command.inputs()
    assert command.lora_scales == [0.5, 2.0]
    again = Sana.load(model, lora=command.loras, lora_scale=command.lora_scales, **LOAD)
    assert again.generate(command.requests()[0])[0].png() == picture.png()

    scaled = [*png, "--lora", first, "--lora", second, "--lora-scale", "1", "--lora-scale", "1"]
    assert drawn_again(*scaled).lora_scales == [1.0, 1.0]
    for words, message in (
        ([], "drawn with --lora; give it again"),
        (["--lora", first], "drawn with 2 --lora, got 1"),
        (["--lora", second, "--lora", first], "drawn with; give them in its order"),
        (["--lora", first, "--lora", first], r"a.safetensors is not the --lora|in its order"),
    ):
        with pytest.raises(RequestError, match=message):
            drawn_again(*png, *words).inputs()


def test_other_tools_see_both():
    request = Request("a cat", width=64, height=64, seed=1, steps=2, guidance=2.0)
    both = [MergedLora("film", "a" * 64, 0.5), MergedLora("<b>, c:d", "b" * 64, -1e-3)]

    def text(loras: list[MergedLora]) -> str:
        facts = lora_provenance(loras)
        return Picture(Image.new("RGB", (8, 8)), request, provenance=facts).metadata["parameters"]

    assert text(both).startswith("a cat <lora:film:0.5> <lora:_b_c_d:-0.001>\nSteps: 2")
    assert 'Lora hashes: "film: aaaaaaaaaa, _b_c_d: bbbbbbbbbb"' in text(both)
    assert text(both[:1]).startswith("a cat <lora:film:0.5>\n")
    assert 'Lora hashes: "film: aaaaaaaaaa"' in text(both[:1])
    assert text([]).startswith("a cat\n") and "Lora" not in text([])


def test_a_lora_is_called_by_its_file_or_by_its_folder(tmp_path: Path):
    (tmp_path / "flat").mkdir()
    assert read_lora(lora(tmp_path / "film.v2.safetensors", "to_q", 1)).name == "film.v2"
    lora(tmp_path / "flat" / "pytorch_lora_weights.safetensors", "to_q", 1)
    assert read_lora(tmp_path / "flat").name == "flat"
    assert read_lora(tmp_path / "flat").rank == 2

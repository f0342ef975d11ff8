"""A benchmark from pictures to figures, stopped and resumed.

Also tests `evaluate/benchmark/features.py`, `evaluate/benchmark/judges.py`, `evaluate/rows.py` and
`evaluate/folder.py`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opensana.errors import ConfigError, DataError, RequestError, WeightsError
from opensana.evaluate.benchmark import run
from opensana.evaluate.benchmark.judges import Judges, open_judges
from opensana.evaluate.benchmark.run import Options, evaluate_benchmark
from opensana.evaluate.folder import read_examples


class SmallNetwork(nn.Module):
    """Six features of the input instead of Inception's."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1)


class PaintedClip:
    """Embeds a picture by its colour and every text alike."""

    name = "painted@0"

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        colours = torch.stack([torch.from_numpy(np.array(image)).float() for image in images])
        return nn.functional.normalize(colours.mean((1, 2)), dim=-1)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(texts), 1)


GREY = [Image.new("RGB", (16, 16), "grey")] * 4
JUDGES: Any = Judges(SmallNetwork(), PaintedClip())  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensana.evaluate.benchmark.features.for_inference", lambda net: net)


def benchmark(folder: Path, *, seed: int = 0, count: int = 24) -> str:
    generator, meta = np.random.default_rng(seed), {}
    for i in range(count):
        category = ("cats", "dogs")[i % 2]
        path = folder / "imgs" / category / f"k{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(path)
        meta[f"k{i}"] = {"category": category, "prompt": f"picture {i}"}
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    return benchmark(tmp_path / "real"), benchmark(tmp_path / "drawn", seed=1)


def test_every_figure_names_its_protocol(folders: tuple[str, str], tmp_path: Path) -> None:
    real, drawn = folders
    options = Options("", drawn, real, batch=4)
    found = evaluate_benchmark(options, tmp_path / "to", JUDGES, replicates=3)
    figures = found["figures"]
    assert list(figures) == [
        *("fid", "kid", "precision", "recall", "density", "coverage"),
        *("cmmd", "clip_score"),
    ]
    assert {f["protocol"] for f in figures.values()} == {"sana", "painted@0"}
    assert figures["fid"]["low"] < figures["fid"]["value"] < figures["fid"]["high"]
    assert 50 < figures["clip_score"]["value"] < 65, "100 times the cosine of grey and red"
    assert set(found["categories"]) == {"cats", "dogs"}
    assert found["categories"]["cats"]["pictures"] == 12
    assert found["protocol"].startswith("sana: shorter side to 16")
    assert json.loads((tmp_path / "to" / "figures.json").read_text())["figures"] == figures
    clean = Options("", drawn, real, protocol="clean")
    other = evaluate_benchmark(clean, tmp_path / "clean", JUDGES, replicates=0)["figures"]["fid"]
    assert other["protocol"] == "clean" and other["value"] != figures["fid"]["value"]


def test_identical_folders_have_fid_zero(folders: tuple[str, str], tmp_path: Path) -> None:
    real, _ = folders
    found = evaluate_benchmark(Options("", real, real), tmp_path / "to", JUDGES)["figures"]
    assert found["fid"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["precision"]["value"] == found["recall"]["value"] == 1
    assert found["cmmd"]["value"] == pytest.approx(0, abs=1e-6)


def test_a_stopped_run_resumes_to_the_same_figures(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = folders
    options = Options("", drawn, real, batch=4)
    whole = evaluate_benchmark(options, tmp_path / "whole", JUDGES)
    seen: list[int] = []

    class Failing(SmallNetwork):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(len(pixels))
            if len(seen) == 6:
                raise KeyboardInterrupt
            return super().forward(pixels)

    failing: Any = Judges(Failing(), PaintedClip())  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        evaluate_benchmark(options, tmp_path / "to", failing)
    seen.clear()
    seen.append(0)  # so that nothing fails again
    seen.extend([0] * 6)
    assert evaluate_benchmark(options, tmp_path / "to", failing) == whole
    assert sum(seen) == 24 - 16 + 24, "four batches were kept"
    seen.clear()
    assert evaluate_benchmark(options, tmp_path / "to", failing) == whole
    assert not seen


def test_other_settings_need_another_folder(folders: tuple[str, str], tmp_path: Path) -> None:
    real, drawn = folders
    evaluate_benchmark(Options("", drawn, real), tmp_path / "to", JUDGES, replicates=0)
    with pytest.raises(ConfigError, match="begun with protocol 'sana', got 'clean'"):
        evaluate_benchmark(Options("", drawn, real, protocol="clean"), tmp_path / "to", JUDGES)


def test_statistics_stand_in_for_pictures(folders: tuple[str, str], tmp_path: Path) -> None:
    real, drawn = folders
    options = Options("", drawn, real)
    first = evaluate_benchmark(options, tmp_path / "one", JUDGES, replicates=0)
    second = evaluate_benchmark(
        options, tmp_path / "two", JUDGES, reference=tmp_path / "one/reference.npz", replicates=0
    )
    assert second["figures"]["fid"]["value"] == pytest.approx(first["figures"]["fid"]["value"])
    assert set(second["figures"]) == {"fid", "clip_score"}
    assert (
        "statistics has no pictures"
        in second["left_out"]["kid, precision, recall, density, coverage"]
    )


def test_a_model_draws_what_is_missing(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def drawer(model: Any, **options: Any) -> Any:
        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
            asked.extend(zip(prompts, seeds, strict=True))
            return [Image.new("RGB", (16, 16), (seed * 9, seed, 0)) for seed in seeds]

        return draw

    monkeypatch.setattr(run, "drawer", drawer)
    monkeypatch.setattr(run, "weights_of", lambda model: "weights")
    monkeypatch.setattr(run.Sana, "load", lambda model, **options: model)
    options = Options("m", "", folders[0], seed=3)
    half = evaluate_benchmark(options, tmp_path / "to", JUDGES, part=(2, 2))
    assert half == {"part": "2/2", "pictures": 12, "of": 24}
    assert asked[0] == ("picture 1", 4) and len(asked) == 12
    found = evaluate_benchmark(options, tmp_path / "to", JUDGES)
    assert len(asked) == len(set(asked)) == 24
    assert found["pictures"] == 24 and "clip_score" in found["figures"]
    whole = evaluate_benchmark(options, tmp_path / "whole", JUDGES)
    assert whole == found, "several processes find what one does"
    example = read_examples(tmp_path / "to")["Evenly spaced"][5]
    assert (example.key, example.text) == ("k5", "picture 5")
    assert set(example.columns) == {"reference", "drawn"}
    drawn = example.columns["drawn"]
    assert drawn.seed == 8 and drawn.caption.startswith("CLIP ")
    assert drawn.picture.getpixel((0, 0)) == (72, 8, 0)


def test_a_folder_belongs_to_one_state_of_a_training(
    folders: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "export"
    (model / "transformer").mkdir(parents=True)
    weights = model / "transformer" / "model.safetensors"
    (model / "model_index.json").write_text("{}")
    weights.write_bytes(b"one")
    monkeypatch.setattr(run, "drawer", lambda model, **options: lambda prompts, seeds: GREY)
    monkeypatch.setattr(run.Sana, "load", lambda model, **options: model)
    options = Options(str(model), "", folders[0], limit=4)
    first = evaluate_benchmark(options, tmp_path / "to", JUDGES, replicates=0)
    assert evaluate_benchmark(options, tmp_path / "to", JUDGES, replicates=0) == first
    weights.write_bytes(b"two")
    with pytest.raises(ConfigError, match="begun with weights"):
        evaluate_benchmark(options, tmp_path / "to", JUDGES)


def test_parts_are_of_one_count(folders: tuple[str, str], tmp_path: Path) -> None:
    real, drawn = folders
    options = Options("", drawn, real, batch=4)
    whole = evaluate_benchmark(options, tmp_path / "whole", JUDGES)
    for k in (3, 1):
        evaluate_benchmark(options, tmp_path / "to", JUDGES, part=(k, 3))
    found = evaluate_benchmark(options, tmp_path / "to", JUDGES)
    assert found == whole, "the part that lacks is made"
    with pytest.raises(RequestError, match="part 40/40 has nothing of 24 pictures to do"):
        evaluate_benchmark(options, tmp_path / "other", JUDGES, part=(40, 40))
    evaluate_benchmark(options, tmp_path / "to", JUDGES, part=(1, 2))
    with pytest.raises(DataError, match="has parts of 2 and of 3; delete it"):
        evaluate_benchmark(options, tmp_path / "to", JUDGES)


def test_what_is_lacking_is_said(folders: tuple[str, str], tmp_path: Path) -> None:
    real, drawn = folders
    alone: Any = Judges(None, PaintedClip())  # type: ignore[arg-type]
    found = evaluate_benchmark(Options("", drawn, real), tmp_path / "to", alone)
    assert set(found["figures"]) == {"cmmd", "clip_score"}
    assert "get pt_inception" in next(iter(found["left_out"].values()))
    for name, message in (
        ("inception", "is not there; get pt_inception.*without it, all but FID, rFID, KID"),
        ("lpips", "is not there; get AlexNet.*without it, all but LPIPS can be measured"),
        ("clip", "no model.*without it, all but CMMD and the CLIP score can be measured"),
    ):
        with pytest.raises(WeightsError, match=message):
            open_judges(**{name: "no.pth"})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="coverage have no --inception: get pt_inc"):
        evaluate_benchmark(Options("", drawn, real), tmp_path / "to", Judges())
    with pytest.raises(RequestError, match="one of them"):
        Options("m", drawn, real)
    (Path(real) / "meta_data.json").write_text('{"k": {"category": "c", "prompt": " "}}')
    with pytest.raises(DataError, match="have no prompt, such as 'k'"):
        evaluate_benchmark(Options("emoji-256", "", real), tmp_path / "other", JUDGES)

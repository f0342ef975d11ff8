"""One's own pictures through autoencoders: figures, comparison, sheets, and the command.

Also tests `cli/reconstruct.py` and `evaluate/sample.py`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from opensana.autoencoder.model import Autoencoder
from opensana.cli import main
from opensana.datasets.crops import PictureSource
from opensana.errors import ConfigError, DataError, RequestError, WeightsError
from opensana.evaluate import autoencoder as module
from opensana.evaluate import evaluate_pictures
from opensana.evaluate.folder import read_examples
from opensana.evaluate.sample import choose
from opensana.metrics.lpips import Lpips
from opensana.models.load import load_autoencoder
from opensana.models.save import write_autoencoder
from opensana.weights.safetensors import write_safetensors
from tests import tiny
from tests.tiny_clip import save_clip

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six smooth opaque pictures, wider than high."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(3)
    for index in range(6):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize((60, 48), Image.Resampling.BICUBIC).save(root / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two autoencoders of random weights; the second one answers grey."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(1)
    first, second = tiny.autoencoder(), tiny.autoencoder()
    with torch.no_grad():
        for parameter in second.decoder.conv_out.parameters():
            parameter.zero_()
    write_autoencoder(first, root / "first")
    write_autoencoder(second, root / "grey")
    return str(root / "first"), str(root / "grey")


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LPIPS and Inception of random weights, and a tiny CLIP."""
    torch.manual_seed(2)
    lpips, root = Lpips("alexnet"), tmp_path_factory.mktemp("judges")
    for head in lpips.heads:
        head.data.fill_(1.0)
    write_safetensors(lpips.state_dict(), root / "lpips", name="model")
    return {"lpips": root / "lpips", "clip": save_clip(root / "tiny-clip")}


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of Inception's features, mean and deviation of each channel."""

    class Colours(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1)

    monkeypatch.setattr("opensana.evaluate.benchmark.judges.load_inception", lambda path: Colours())
    monkeypatch.setattr("opensana.evaluate.benchmark.features.for_inference", lambda net: net)


def originals(folder: Path) -> np.ndarray:
    """[6, 32, 32, 3] in 0..1: the middle square of each, resized."""
    pictures = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            pictures.append(np.asarray(image.crop((6, 0, 54, 48)).resize((SIZE, SIZE))))
    return np.stack(pictures) / 255


def values(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {name: figure["value"] for name, figure in figures.items()}


def test_figures_are_those_of_the_pictures(folder: Path, models: tuple[str, str]) -> None:
    found = evaluate_pictures(models, folder, size=SIZE, batch=4, device="cpu")
    assert (found["pictures"], found["size"]) == (6, SIZE)
    grey = found["models"][models[1]]
    assert list(grey) == ["psnr", "psnr_of_mean_error", "ssim"]
    errors = ((originals(folder) - 128 / 255) ** 2).mean((1, 2, 3))
    of_mean = grey["psnr_of_mean_error"]
    assert of_mean["value"] == pytest.approx(-10 * np.log10(errors.mean()), abs=0.05)
    assert grey["psnr"]["value"] == pytest.approx(-10 * np.log10(errors).mean(), abs=0.05)
    reach = 1.96 * np.std(-10 * np.log10(errors), ddof=1) / np.sqrt(6)
    assert grey["psnr"]["high"] - grey["psnr"]["value"] == pytest.approx(reach, rel=0.02)
    draw = np.random.default_rng(0)
    resampled = [-10 * np.log10(draw.choice(errors, 6).mean()) for _ in range(2000)]
    assert of_mean["high"] - of_mean["value"] == pytest.approx(1.96 * np.std(resampled), rel=0.2)
    alone = evaluate_pictures(models[:1], folder, size=SIZE, batch=1, device="cpu")
    first = values(alone["models"][models[0]])
    assert first == pytest.approx(values(found["models"][models[0]]), rel=1e-4)
    assert list(found["left_out"]) == ["lpips", "rfid", "cmmd"]
    assert "opensana convert alexnet" in found["left_out"]["lpips"]


@pytest.mark.usefixtures("colours")
def test_a_perfect_autoencoder_loses_nothing(
    folder: Path,
    models: tuple[str, str],
    judges: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Autoencoder, "encode", lambda self, pixels: pixels)
    monkeypatch.setattr(Autoencoder, "decode", lambda self, latent: latent)
    found = evaluate_pictures(
        models[:1], folder, size=SIZE, inception="here", device="cpu", **judges
    )
    figures = found["models"][models[0]]
    assert list(figures) == ["psnr", "psnr_of_mean_error", "ssim", "lpips", "rfid", "cmmd"]
    assert figures["psnr"]["value"] == 100
    assert figures["ssim"]["value"] == pytest.approx(1, abs=1e-4)
    for name in ("lpips", "rfid", "cmmd"):
        assert figures[name]["value"] == pytest.approx(0, abs=1e-4), name
    assert figures["lpips"]["protocol"] == "alexnet, 32 pixels"
    assert figures["rfid"]["protocol"] == "sana"
    assert figures["cmmd"]["protocol"].startswith("tiny-clip@sha256:")
    assert "left_out" not in found


@pytest.mark.usefixtures("colours")
def test_the_judges_see_a_loss(
    folder: Path, models: tuple[str, str], judges: dict[str, Any]
) -> None:
    found = evaluate_pictures(
        models[1:], folder, size=SIZE, inception="here", device="cpu", **judges
    )
    figures = found["models"][models[1]]
    for name in ("lpips", "rfid", "cmmd"):
        assert figures[name]["value"] > 0.01, name
    assert figures["rfid"]["low"] < figures["rfid"]["value"] < figures["rfid"]["high"]


def test_a_stopped_run_resumes_to_the_same_figures(
    folder: Path, models: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate_pictures(models, folder, size=SIZE, batch=1, device="cpu")
    calls: list[int] = []
    through = module.through

    def failing(autoencoder: Autoencoder) -> Any:
        def reconstruct(pixels: Tensor) -> Tensor:
            calls.append(len(pixels))
            if len(calls) == 6:
                raise KeyboardInterrupt
            return through(autoencoder)(pixels)

        return reconstruct

    monkeypatch.setattr(module, "through", failing)
    options: dict[str, Any] = {"to": tmp_path / "to", "size": SIZE, "batch": 1, "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        evaluate_pictures(models, folder, **options)
    calls.clear()
    calls += [0] * 6  # so that nothing fails again
    assert evaluate_pictures(models, folder, **options) == whole
    examples = read_examples(tmp_path / "to")
    assert [len(rows) for rows in examples.values()] == [6, 6]
    assert sum(calls) == 2 + 6 + 2 * 6, "four pictures were kept; each example is made once"
    calls.clear()
    calls += [0] * 6
    assert evaluate_pictures(models, folder, **options) == whole
    assert sum(calls) == 2 * 6, "examples alone"
    with pytest.raises(ConfigError, match="begun with limit 1000, got 3"):
        evaluate_pictures(models, folder, limit=3, **options)


def test_the_worst_pictures_are_those_of_which_some_model_loses_most() -> None:
    errors = {"a": np.array([0.1, 0.5, 0.2, 0.0]), "b": np.array([0.3, 0.1, 0.1, 0.0])}
    assert module.hardest(errors) == [1, 0, 2, 3]


def test_the_limit_spreads_over_the_folder(folder: Path) -> None:
    source = PictureSource.open(folder)
    assert choose(source, 3, size=SIZE, batch=2).indices == [0, 2, 5]
    assert choose(source, 99, size=SIZE, batch=2).indices == list(range(6))


def test_the_grid_holds_originals_and_both_answers(
    folder: Path, models: tuple[str, str], tmp_path: Path
) -> None:
    path, worst = tmp_path / "grid.png", tmp_path / "worst.png"
    evaluate_pictures(models, folder, size=SIZE, limit=2, grid=path, worst=worst, device="cpu")
    with Image.open(path) as sheet, Image.open(worst) as other:
        pixels = np.asarray(sheet)
        assert other.size == sheet.size
    assert pixels.shape == (2 * (SIZE + 36) + 8, 3 * (SIZE + 8) + 8, 3)
    first = originals(folder)[0] * 255
    assert np.abs(pixels[8 : 8 + SIZE, 8 : 8 + SIZE] - first).max() <= 1
    grey = pixels[8 : 8 + SIZE, 8 + 2 * (SIZE + 8) : -8]
    assert np.all(grey == 128)


def test_the_command(
    folder: Path, models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [models[0], str(folder), "--size", "32", "--device", "cpu", "--against", models[1]]
    assert main(["reconstruct", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["pictures", "6"]
    assert lines[-4].split() == [*models, "protocol"]
    assert [line.split()[0] for line in lines[-3:]] == ["psnr", "psnr_of_mean_error", "ssim"]
    assert lines[-1].endswith("8 bits, 32 pixels")
    assert main(["reconstruct", *words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["models"]) == set(models)


def test_wrong_requests_are_named(
    folder: Path, models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = models[0]
    with pytest.raises(RequestError, match="multiples of 32, at least 32, got 40"):
        evaluate_pictures([first], folder, size=40)
    with pytest.raises(ConfigError, match="named twice"):
        evaluate_pictures([first, first], folder)
    with pytest.raises(RequestError, match="1 or more, got 0 and 1000"):
        evaluate_pictures([first], folder, batch=0)
    with pytest.raises(DataError, match="--split train"):
        evaluate_pictures([first], folder, split="held_out")
    with pytest.raises(WeightsError, match="is not there; get AlexNet"):
        evaluate_pictures([first], folder, size=32, lpips=tmp_path / "nowhere")
    assert main(["reconstruct", "emoji-255", str(folder)]) == 1
    assert "did you mean 'emoji-256'" in capsys.readouterr().err
    assert load_autoencoder(Path(first)).compression == 32

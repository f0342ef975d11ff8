"""One's own pictures through an autoencoder: figures, comparison, grid, and the command.

Also tests `cli/reconstruct.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.autoencoder.model import Autoencoder
from opensana.cli import main
from opensana.errors import ConfigError, DataError, RequestError, WeightsError
from opensana.evaluate import autoencoder as module
from opensana.evaluate import evaluate_pictures
from opensana.metrics.lpips import Lpips
from opensana.models.load import load_autoencoder
from opensana.models.save import write_autoencoder
from opensana.weights.safetensors import write_safetensors
from tests import tiny
from tests.metrics.test_frechet import clip  # noqa: F401

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
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    module = Lpips()
    for head in module.heads:
        head.data.fill_(1.0)
    root = tmp_path_factory.mktemp("lpips")
    write_safetensors(module.state_dict(), root, name="model")
    return root


def originals(folder: Path) -> np.ndarray:
    """[6, 32, 32, 3] in 0..1: the middle square of each, resized."""
    pictures = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            pictures.append(np.asarray(image.crop((6, 0, 54, 48)).resize((SIZE, SIZE))))
    return np.stack(pictures) / 255


def test_figures_are_those_of_the_pictures(folder: Path, models: tuple[str, str]) -> None:
    found = evaluate_pictures(models, folder, size=SIZE, batch=4, device="cpu")
    assert (found["pictures"], found["size"]) == (6, SIZE)
    grey = found["models"][models[1]]
    assert set(grey) == {"psnr", "psnr_of_mean_error", "ssim"}
    errors = ((originals(folder) - 128 / 255) ** 2).mean((1, 2, 3))
    assert grey["psnr_of_mean_error"] == pytest.approx(-10 * np.log10(errors.mean()), abs=0.05)
    assert grey["psnr"] == pytest.approx(-10 * np.log10(errors).mean(), abs=0.05)
    alone = evaluate_pictures(models[:1], folder, size=SIZE, batch=1, device="cpu")
    first = alone["models"][models[0]]
    assert first == pytest.approx(found["models"][models[0]], rel=1e-4)


def test_a_perfect_autoencoder_loses_nothing(
    folder: Path,
    models: tuple[str, str],
    lpips: Path,
    clip: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Autoencoder, "encode", lambda self, pixels: pixels)
    monkeypatch.setattr(Autoencoder, "decode", lambda self, latent: latent)
    found = evaluate_pictures(models[:1], folder, size=SIZE, lpips=lpips, clip=clip, device="cpu")
    figures = found["models"][models[0]]
    assert figures["psnr"] == 100
    assert figures["ssim"] == pytest.approx(1, abs=1e-4)
    assert figures["lpips_vgg"] == pytest.approx(0, abs=1e-6)
    assert figures["frechet_clip"] == pytest.approx(0, abs=1e-6)
    assert "not comparable" in found["frechet_features"]


def test_the_judges_see_a_loss(
    folder: Path,
    models: tuple[str, str],
    lpips: Path,
    clip: Path,  # noqa: F811
) -> None:
    found = evaluate_pictures(models[1:], folder, size=SIZE, lpips=lpips, clip=clip, device="cpu")
    figures = found["models"][models[1]]
    assert figures["lpips_vgg"] > 0.01
    assert figures["frechet_clip"] > 0.01


def test_the_limit_spreads_over_the_folder(folder: Path) -> None:
    source = module.PictureSource.open(folder)
    assert module.choose(source, 3, size=SIZE, batch=2).indices == [0, 2, 5]
    assert module.choose(source, 99, size=SIZE, batch=2).indices == list(range(6))


def test_the_grid_holds_originals_and_both_answers(
    folder: Path, models: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "grid.png"
    evaluate_pictures(models, folder, size=SIZE, limit=2, grid=path, device="cpu")
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
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
    assert lines[3].split() == list(models)
    assert [line.split()[0] for line in lines[4:]] == ["psnr", "psnr_of_mean_error", "ssim"]
    assert main(["reconstruct", *words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["models"]) == set(models)


def test_wrong_requests_are_named(
    folder: Path, models: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = models[0]
    with pytest.raises(RequestError, match="multiples of 32, at least 16, got 40"):
        evaluate_pictures([first], folder, size=40)
    with pytest.raises(ConfigError, match="the same"):
        evaluate_pictures([first, first], folder)
    with pytest.raises(RequestError, match="1 or more, got 0 and 1000"):
        evaluate_pictures([first], folder, batch=0)
    with pytest.raises(DataError, match="--split train"):
        evaluate_pictures([first], folder, split="held_out")
    with pytest.raises(WeightsError, match="no file or folder"):
        evaluate_pictures([first], folder, size=32, lpips=tmp_path / "nowhere")
    assert main(["reconstruct", "emoji-255", str(folder)]) == 1
    assert "did you mean 'emoji-256'" in capsys.readouterr().err
    assert load_autoencoder(Path(first)).compression == 32

"""`opensana preview`, from a folder of pictures to the file. Also tests `cli/preview.py`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensana.autoencoder.preview import Preview
from opensana.cli import main
from opensana.models.find import find_autoencoder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(24):
        corners = np.random.default_rng(index).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        Image.fromarray(corners).resize((64, 64)).save(folder / f"{index}.png")
    return folder


def test_previews_are_written_beside_the_autoencoder(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "vae"
    shutil.copytree(find_autoencoder("emoji-256"), model)
    (model / "preview.safetensors").unlink()
    assert main(["preview", str(model), str(pictures), "--size", "64", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["fitted"], figures["measured"]) == (21, 3)
    assert figures["psnr"] > 20
    assert Preview.read(model, channels=32) is not None


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--size", "70"], 2, "size must be a multiple of 32, got 70"),
        (["--limit", "5"], 1, "fitted to 20 pictures or more, got 5"),
        (["--batch", "0"], 2, "batch and limit must be 1 or more"),
    ],
)
def test_wrong_use_is_one_line(
    pictures: Path, flags: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preview", "emoji-256", str(pictures), *flags]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") <= 1

"""Crops: exact composition, the right places, the same draw from the same generator.

Also tests `datasets/crops.py`.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensana.datasets.crops import PictureSource
from opensana.datasets.rewrite import convert
from opensana.datasets.sources import open_source
from opensana.errors import DataError


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_splits(pictures: Path):
    assert len(PictureSource.open(pictures)) == 8
    held_out = PictureSource.open(pictures, split="held_out")
    assert len(held_out) == 2 and held_out.name(0) == "P8"


def test_whole_picture_on_white_is_exact(pictures: Path):
    pixels = np.load(pictures / "pictures.npy")[3].astype(float)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    got = PictureSource.open(pictures).square(3, 32).astype(float)
    assert np.abs(got - expected).max() <= 0.5 + 1e-6


def test_a_crop_of_the_picture_size_is_the_whole(pictures: Path):
    source = PictureSource.open(pictures, white=1.0)
    assert np.array_equal(source.sample(2, draw(), 32), source.square(2, 32))


def test_crops_are_windows(pictures: Path):
    source = PictureSource.open(pictures, white=1.0, aligned=0.0)
    whole = source.square(1, 32)
    windows = {whole[y : y + 16, x : x + 16].tobytes() for y in range(17) for x in range(17)}
    assert all(source.sample(1, draw(seed), 16).tobytes() in windows for seed in range(20))


def test_aligned_crops_start_at_multiples_of_32(tmp_path: Path):
    Image.fromarray(draw().integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    source = PictureSource.open(tmp_path, aligned=1.0)
    whole = source.square(0, 96)
    places = (0, 32, 64)
    windows = {whole[y : y + 32, x : x + 32].tobytes() for y in places for x in places}
    assert {source.sample(0, draw(seed), 32).tobytes() for seed in range(60)} == windows


def test_the_generator_decides_everything(pictures: Path):
    source = PictureSource.open(pictures, rescale=0.5)
    first = [source.sample(i, draw(i), 16) for i in range(8)]
    assert all(np.array_equal(a, source.sample(i, draw(i), 16)) for i, a in enumerate(first))


def test_backgrounds(tmp_path: Path):
    np.save(tmp_path / "pictures.npy", np.zeros((1, 32, 32, 4), dtype=np.uint8))
    (tmp_path / "records.jsonl").write_text('{"hexcode": "A", "split": "train"}\n')
    source = PictureSource.open(tmp_path, white=0.5, rescale=0.5)
    colours = [source.sample(0, draw(seed), 16) for seed in range(200)]
    assert all((crop == crop[0, 0]).all() for crop in colours)
    white = sum(bool((crop == 255).all()) for crop in colours)
    assert 70 < white < 130


@pytest.mark.parametrize("crop", [16, 32, 64])
def test_rescaled_crops_have_the_asked_size(pictures: Path, crop: int):
    source = PictureSource.open(pictures, rescale=1.0)
    assert all(source.sample(0, draw(s), crop).shape == (crop, crop, 3) for s in range(20))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA"])
@pytest.mark.parametrize("size", [(40, 20), (10, 30)])
def test_plain_folders_take_any_mode_and_shape(tmp_path: Path, mode: str, size: tuple[int, int]):
    Image.new(mode, size).save(tmp_path / "a.png")
    source = PictureSource.open(tmp_path, rescale=0.5)
    assert all(source.sample(0, draw(s), 16).shape == (16, 16, 3) for s in range(6))
    assert source.square(0, 16).shape == (16, 16, 3)


def test_a_broken_file_is_named(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    with pytest.raises(DataError, match=r"bad\.png"):
        PictureSource.open(tmp_path).sample(0, draw(), 16)


def test_another_format_under_a_known_name_is_refused(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="TIFF")
    with pytest.raises(DataError, match=r"a\.png"):
        PictureSource.open(tmp_path).sample(0, draw(), 8)


def test_missing_and_empty_folders(tmp_path: Path):
    with pytest.raises(DataError, match="there is no data"):
        PictureSource.open(tmp_path / "none")
    with pytest.raises(DataError, match="holds no pictures"):
        PictureSource.open(tmp_path)


def coloured(folder: Path, count: int = 20) -> Path:
    folder.mkdir()
    for k in range(count):
        Image.new("RGB", (32, 32), (k, 0, 0)).save(folder / f"{k:02}.png")
    return folder


@pytest.mark.parametrize("form", ["jsonl", "webdataset", "official-tar"])
def test_any_source_gives_the_same_crops(tmp_path: Path, form: str):
    folder = coloured(tmp_path / "in")
    convert(open_source(folder), tmp_path / "out", form)
    a, b = (PictureSource.open(path) for path in (folder, tmp_path / "out"))
    assert [a.name(k) for k in range(20)] == [b.name(k) for k in range(20)]
    assert all(
        np.array_equal(a.sample(k, draw(k), 16), b.sample(k, draw(k), 16)) for k in range(20)
    )


def test_damage_found_while_training_is_named_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = coloured(tmp_path / "in", 200)
    for name in ("07", "08"):
        content = (folder / f"{name}.png").read_bytes()
        (folder / f"{name}.png").write_bytes(content[:-30])
    reds = [
        [source.square(k, 32)[0, 0, 0] for k in order]
        for source, order in (
            (PictureSource.open(folder), (6, 7, 8, 9, 7)),
            (PictureSource.open(folder), (8, 7, 9, 6, 7)),  # as a run that was resumed
        )
    ]
    assert reds == [[6, 9, 9, 9, 9], [9, 9, 9, 6, 9]]
    said = capsys.readouterr().err
    assert said.count("refused the picture '07.png': it is damaged") == 2


def test_too_much_damage_stops_a_training(tmp_path: Path):
    folder = coloured(tmp_path / "in", 20)
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:-30])
    source = PictureSource.open(folder)
    with pytest.raises(DataError, match=r"1 of 20 samples cannot be used.*'07\.png' is damaged"):
        source.square(7, 32)


def test_bad_headers_stop_a_training_at_once(tmp_path: Path):
    folder = coloured(tmp_path / "in", 20)
    (folder / "07.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"'07\.png' is an empty file"):
        PictureSource.open(folder)

"""Benchmarks: MJHQ-30K's layout and ours; pictures drawn elsewhere are paired by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensana.errors import DataError
from opensana.evaluate.benchmark.pictures import matched, open_pictures


def save(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (level, 0, 0)).save(path)


@pytest.fixture
def mjhq(tmp_path: Path) -> Path:
    meta = {f"k{i}": {"category": "ab"[i % 2], "prompt": f"picture {i}"} for i in range(6)}
    folder = tmp_path / "mjhq"
    for i in range(6):
        save(folder / "imgs" / "ab"[i % 2] / f"k{i}.png", 40 * i)
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


def level(picture: np.ndarray) -> int:
    return int(picture[0, 0, 0])


def test_mjhq(mjhq: Path) -> None:
    found = open_pictures(mjhq)
    assert [item.category for item in found.items] == list("ababab")
    assert found.items[3].prompt == "picture 3"
    assert [level(found.read(i)) for i in range(6)] == [0, 40, 80, 120, 160, 200]
    some = found.chosen(3)
    assert [item.key for item in some.items] == ["k0", "k2", "k5"]
    assert [level(some.read(i)) for i in range(3)] == [0, 80, 200]
    assert len(found.chosen(99)) == 6


def test_a_folder_of_ours(tmp_path: Path) -> None:
    for name in ("cats/1", "dogs/1"):
        save(tmp_path / f"{name}.png", 9)
        (tmp_path / f"{name}.txt").write_text(f"one of {name}")
    found = open_pictures(tmp_path)
    assert [(item.category, item.prompt) for item in found.items] == [
        ("cats", "one of cats/1"),
        ("dogs", "one of dogs/1"),
    ]


def test_pictures_are_paired_by_name(mjhq: Path, tmp_path: Path) -> None:
    benchmark = open_pictures(mjhq).chosen(3)
    for i in range(6):
        save(tmp_path / "drawn" / f"k{5 - i}.png", 10 * i)
    ordered = matched(open_pictures(tmp_path / "drawn"), benchmark)
    assert ordered is not None
    assert [level(ordered.read(i)) for i in range(3)] == [50, 30, 0]
    (tmp_path / "drawn" / "k5.png").unlink()
    assert matched(open_pictures(tmp_path / "drawn"), benchmark) is None


def test_hostile_indexes_are_refused(mjhq: Path, tmp_path: Path) -> None:
    save(tmp_path / "secret.png", 1)
    for key, category in (("../../../secret", "a"), ("secret", "..")):
        row = {key: {"category": category, "prompt": "x"}}
        (mjhq / "meta_data.json").write_text(json.dumps(row))
        with pytest.raises(DataError, match="is a path"):
            open_pictures(mjhq)
    (mjhq / "meta_data.json").write_text('{"k0": {"category": "a", "prompt": "x"}, "k1": {}}')
    with pytest.raises(DataError, match="no prompt and category of 'k1'"):
        open_pictures(mjhq)
    (mjhq / "meta_data.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        open_pictures(mjhq)


def test_nothing_to_see_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        open_pictures(tmp_path)

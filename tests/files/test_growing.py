"""A folder killed at any moment is as it was at its last commit."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from opensana.errors import DataError
from opensana.files.growing import JOURNAL, GrowingFiles, Lines


def grow(files: GrowingFiles, number: int) -> None:
    files.append("deep/a.npy", np.full((number, 2, 3), number, np.float16))
    files.append_lines("b", [{"n": number, "é": "\n"}])
    files.append("c.txt", np.frombuffer(b"x" * number, np.uint8))
    files.state["last"] = number


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL
    }


def test_arrays_and_lines_read_back(tmp_path: Path):
    with closing(GrowingFiles(tmp_path)) as files:
        for number in range(12):
            grow(files, number)
        files.finish()
    array = np.load(tmp_path / "deep" / "a.npy", mmap_mode="r", allow_pickle=False)
    assert array.shape == (66, 2, 3) and array.dtype == np.float16
    assert array[:, 0, 0].tolist() == [n for n in range(12) for _ in range(n)]
    lines = Lines(tmp_path, "b")
    assert [line["n"] for line in lines] == list(range(12))
    assert lines[11]["é"] == "\n"
    assert (tmp_path / "c.txt").read_bytes() == b"x" * 66
    with pytest.raises(IndexError):
        lines[12]


def test_what_was_not_committed_is_gone(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with closing(GrowingFiles(whole)) as files:
        for number in (1, 2, 3):
            grow(files, number)
        files.finish()
    with closing(GrowingFiles(parts)) as files:
        grow(files, 1)
        files.commit()
        grow(files, 7)
        files.append("unheard.npy", np.ones(3))
    with closing(GrowingFiles(parts)) as files:
        assert files.state == {"last": 1} and files.rows("deep/a.npy") == 1
        grow(files, 2)
        files.finish()
    (parts / "manifest.json").write_text("{}")
    with closing(GrowingFiles(parts)) as files:
        grow(files, 3)
        files.finish()
    assert content(whole) == content(parts)


def test_nothing_committed_is_a_new_start(tmp_path: Path):
    with closing(GrowingFiles(tmp_path)) as files:
        grow(files, 5)
    with closing(GrowingFiles(tmp_path)) as files:
        assert files.state == {} and files.rows("c.txt") == 0
    assert content(tmp_path) == {}


def test_one_writer_at_a_time(tmp_path: Path):
    with closing(GrowingFiles(tmp_path)), pytest.raises(DataError, match="another process"):
        GrowingFiles(tmp_path)


def test_a_file_that_lost_rows_is_named(tmp_path: Path):
    with closing(GrowingFiles(tmp_path)) as files:
        grow(files, 5)
        files.commit()
    (tmp_path / "c.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"c\.txt is damaged"):
        GrowingFiles(tmp_path)


def test_rows_of_another_kind_are_refused(tmp_path: Path):
    with closing(GrowingFiles(tmp_path)) as files:
        grow(files, 1)
        with pytest.raises(DataError, match="has rows of"):
            files.append("deep/a.npy", np.zeros((1, 2, 4), np.float16))
        with pytest.raises(DataError, match="has rows of"):
            files.append("deep/a.npy", np.zeros((1, 2, 3), np.float32))


def test_the_journal_is_json(tmp_path: Path):
    with closing(GrowingFiles(tmp_path)) as files:
        grow(files, 2)
        files.commit()
    journal = json.loads((tmp_path / JOURNAL).read_text())
    assert journal["files"]["deep/a.npy"] == {"rows": 2, "dtype": "<f2", "shape": [2, 3]}

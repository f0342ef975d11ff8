import os
import stat
from pathlib import Path

import pytest

from opensana.datasets.record import Reject
from opensana.datasets.rejects import check_bad, read_rejects, share_of, write_rejects
from opensana.errors import ConfigError, DataError, OpensanaError
from opensana.files.writing import atomic_folder

REJECTS = [Reject("a\nb.png", "is \u96ea"), Reject("c.png", 'has "quotes"')]


def test_a_file_that_appears_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "rejects.jsonl"
    write_rejects(path, REJECTS)
    assert read_rejects(path) == REJECTS and len(path.read_text().splitlines()) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OpensanaError, match="No space"):
        write_rejects(path, [])
    assert read_rejects(path) == REJECTS
    assert [entry.name for entry in path.parent.iterdir()] == ["rejects.jsonl"]


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5", 0.5), (" 0 ", 0), ("100%", 1)])
def test_shares(text: str, share: float) -> None:
    assert share_of(text) == share


@pytest.mark.parametrize("text", ["", "%", "x", "2", "101%", "-1%", "nan", "inf"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match="a share is"):
        share_of(text)


def test_the_rule() -> None:
    check_bad("set", [], 1)
    check_bad("set", REJECTS[:1], 99)
    with pytest.raises(DataError, match=r"1 of 99 samples cannot be used, more than 1 %"):
        check_bad("set", REJECTS[:1], 98)
    check_bad("set", REJECTS, 2, max_bad=0.5)
    with pytest.raises(DataError, match="2 of 2"):
        check_bad("set", REJECTS, 0, max_bad=1.0)
    with pytest.raises(DataError, match="holds no pictures"):
        check_bad("set", [], 0)


def test_a_name_may_have_all_that_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    write_rejects(path, [Reject("a.png", "is damaged")])
    assert read_rejects(path) == [Reject("a.png", "is damaged")]
    folder = tmp_path / ("b" * 255)
    for text in ("one", "two"):
        with atomic_folder(folder) as partial:
            (partial / "file").write_text(text)
    assert (folder / "file").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 2

"""Where pictures go: names that are free, long, refused, or repeated."""

import os
from pathlib import Path

import pytest

from opensana.cli import main
from opensana.cli.output import PictureFiles
from opensana.errors import RequestError
from opensana.request import Request
from tests.cli.painted import PaintedSana, files, refused


@pytest.mark.parametrize("length", [9, 233, 234, 250, 255])
@pytest.mark.parametrize("letter", ["a", "\u732b"])
def test_every_name_that_the_system_takes_is_written(
    sana: PaintedSana, tmp_path: Path, length: int, letter: str
) -> None:
    size = len(letter.encode())
    name = letter * ((length - 4) // size) + "b" * ((length - 4) % size) + ".png"
    assert len(os.fsencode(name)) == length
    assert main(["generate", "x", "-o", name]) == 0
    assert files(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("a" * 252 + ".png", []),
        ("\u732b" * 84 + ".png", []),
        ("a" * 251 + ".png", ["-n", "2"]),
        ("a" * 250 + ".png", ["-n", "11", "--overwrite"]),
        ("a" * 250 + "{index}.png", ["-n", "11"]),
        ("a" * 242 + "{seed}.png", []),
        ("a" * 246 + "{seed}.png", ["--seed", "123456"]),
        ("{seed:0300d}.png", []),
        ("{seed:c}.png", []),
    ],
)
def test_a_name_that_cannot_be_written_is_refused_before_drawing(
    never_loaded: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    flags: list[str],
) -> None:
    message = refused(capsys, "generate", "x", "-o", name, *flags)
    assert "no picture can be written as" in message
    assert message.count("\n") == 1
    assert files(tmp_path) == []


def test_the_number_behind_a_name_that_is_taken_counts(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name = "a" * 251 + ".png"
    for _ in range(2):
        assert main(["generate", "x", "-o", name, "--overwrite"]) == 0
    sana.loads.clear()
    capsys.readouterr()
    assert "257 bytes" in refused(capsys, "generate", "x", "-o", name)
    assert not sana.loads
    assert files(tmp_path) == [name]


def test_a_path_that_is_too_long_is_refused_before_drawing(
    never_loaded: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    longest = os.pathconf(tmp_path, "PC_PATH_MAX") - 1
    part = "p" * 199 + "/"
    for rest in (5, 10, 300):  # too long: the name under which it is written first, its own, all
        folder = part * 30 if rest == 300 else part * ((longest - rest) // 200)
        folder += "f" * (longest - rest - len(folder) - 1) + "/" if rest < 300 else ""
        message = refused(capsys, "generate", "x", "-o", folder + "abcd.png")
        assert "File name too long" in message


def test_a_folder_of_the_name_is_not_overwritten(sana: PaintedSana, tmp_path: Path) -> None:
    (tmp_path / "out_3.png").mkdir()
    assert main(["generate", "x", "--seed", "3", "--overwrite"]) == 0
    assert files(tmp_path) == ["out_3-1.png", "out_3.png"]


def test_many_pictures_of_one_name_are_named_fast(tmp_path: Path) -> None:
    names = PictureFiles(str(tmp_path / "a.png"), overwrite=True)
    names.check([Request("x", images=64)] * 300)
    assert [names.path(seed=None, index=0).name for _ in range(2)] == ["a.png", "a-1.png"]


def test_paths_never_repeat_within_a_run(tmp_path: Path) -> None:
    names = PictureFiles(str(tmp_path / "a.png"), overwrite=True)
    assert [names.path(seed=1, index=i).name for i in range(3)] == ["a.png", "a-1.png", "a-2.png"]


def test_a_lone_brace_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="for braces"):
        PictureFiles(str(tmp_path / "a}.png"), overwrite=False)

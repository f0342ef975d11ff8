"""What a console can show: results in every encoding, closed and full outputs, tables."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from opensana.cli import main
from opensana.cli.command import PACKAGE, say_warnings, table
from tests.cli.painted import ROOT, PaintedSana, files

STAND_IN = """
import opensana
from PIL import Image
from opensana.cli import program
from opensana.drawing.picture import Picture
class Painted:
    def load(*_, **__): return Painted()
    def draw(self, request, notice, **_):
        notice(request.prompt)
        for _ in range(request.images):
            yield Picture(Image.new('RGB', (8, 8)), request)
opensana.Sana = Painted()
program()
"""


def painted_by_a_process(folder: Path, command: str, **environment: str) -> bytes:
    """What a shell's command prints that runs the stand-in, which must end well."""
    (folder / "painted.py").write_text(STAND_IN)
    known = {name: value for name, value in os.environ.items() if not name.startswith("LC_")}
    done = subprocess.run(
        command.replace("opensana", f"{sys.executable} painted.py"),
        shell=True,
        cwd=folder,
        env=known | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, rb"\u732b"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "\u732b".encode()),
    ],
)
def test_three_prompts_are_three_pictures_on_any_console(
    tmp_path: Path, environment: dict[str, str], shown: bytes
) -> None:
    (tmp_path / "p.txt").write_text("\u72d7\na \U0001f34e\n\u00e9t\u00e9\n", "utf-8")
    line = "opensana generate --prompt-file p.txt --seed 1 -o '\u732b{index}.png'"
    told = painted_by_a_process(tmp_path, line, **environment)
    assert told.splitlines() == [b"%s%d.png" % (shown, index) for index in range(3)]
    assert set(files(tmp_path)) > {f"\u732b{index}.png" for index in range(3)}


def test_an_output_that_nobody_reads_ends_no_drawing(tmp_path: Path) -> None:
    line = "opensana generate x -n 2 --seed 1 -o {index}.png 2>&-"
    assert painted_by_a_process(tmp_path, line) == b"0.png\n1.png\n"
    painted_by_a_process(tmp_path, f"{line} --overwrite >&-")
    assert files(tmp_path) == ["0.png", "1.png", "painted.py"]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp932", "utf-8"])
def test_results_survive_every_encoding(
    sana: PaintedSana, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    (tmp_path / "p.txt").write_text("\u72d7\na \U0001f34e\n\u00e9t\u00e9\n", "utf-8")
    # Letters of many scripts, and a byte that is no text, as Python hands it over.
    name = "\u732b\u00e9\u0430\U0001f34e\udce9-{index}.png"
    line = ["generate", "--prompt-file", "p.txt", "--seed", "1", "-o", name, "--overwrite"]
    for form in ([], ["--json"]):
        console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", console)
        assert main([*line, *form]) == 0
        console.flush()
        told = console.buffer.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
        paths = [name.format(index=index) for index in range(3)]
        if form:
            assert [json.loads(line)["path"] for line in told] == paths
        elif encoding == "utf-8":
            assert told == [os.fsencode(path) for path in paths]
        else:
            assert [line[-6:] for line in told] == [b"-%d.png" % index for index in range(3)]
    assert len(files(tmp_path)) == 4


def test_a_full_disk_behind_stderr_ends_no_drawing(
    sana: PaintedSana, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    assert main(["generate", "word " * 50, "-o", "a.png"]) == 0
    assert files(tmp_path) == ["a.png"]


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import sys\n"
        "from opensana.cli import main\n"
        "from opensana.cli import info\n"
        "import types\n"
        "describing = types.ModuleType('opensana.models.describe')\n"
        "describing.describe = lambda *_, **__: {str(i): 'x' * 1000 for i in range(1000)}\n"
        "sys.modules['opensana.models.describe'] = describing\n"
        "sys.exit(main(['info', 'm']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=10) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "opensana.cli", "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_tables_align_and_nest() -> None:
    assert table({"a": 1, "long": {"b": 0.123456}, "none": None}) == [
        "a     1",
        "long",
        "  b  0.1235",
        "none",
    ]


def test_warnings_of_the_package_are_lines_and_others_stay_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warnings, "showwarning", print)
    say_warnings()
    inside, outside = str(PACKAGE / "models" / "open.py"), "/elsewhere/library.py"
    warnings.showwarning(UserWarning("w8 saves memory"), UserWarning, inside, 3)
    assert capsys.readouterr().err == "opensana: w8 saves memory\n"
    warnings.showwarning(UserWarning("theirs"), UserWarning, outside, 3)
    assert outside in capsys.readouterr().out

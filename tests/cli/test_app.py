"""Every command line: commands, errors as one line, Ctrl-C, the page of the flags."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import opensana
from opensana.cli import app, main
from opensana.cli.app import COMMANDS
from opensana.errors import OpensanaError, WeightsError
from tests.cli.painted import ROOT, PaintedSana, files, refused


def test_an_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "genrate", "x")
    assert all(name in message for name in COMMANDS)


# ------------------------------------------------------------------ failures


def test_errors_are_one_line(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    sana.failure = WeightsError("file a\nis broken")
    assert main(["generate", "x"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "opensana: file a is broken"


def test_unforeseen_errors_are_one_line_too(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str]
) -> None:
    sana.failure = RuntimeError("out of memory")
    assert main(["generate", "x"]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1] == "opensana: RuntimeError: out of memory; add --debug to see where"
    assert len(error) == 2


def test_debug_shows_the_traceback(sana: PaintedSana, capsys: pytest.CaptureFixture[str]) -> None:
    sana.failure = OpensanaError("why")
    assert main(["generate", "x", "--debug"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1] == "opensana: why"


def test_interrupted_leaves_nothing_behind(
    sana: PaintedSana, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sana.failure = KeyboardInterrupt()
    assert main(["generate", "x"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "opensana: interrupted"
    assert files(tmp_path) == []


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, opensana\n"
        "from opensana.cli import main\n"
        # A test run in the background of a shell inherits Ctrl-C as ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        "    def load(*_, **__):\n"
        "        print('loaded', flush=True); time.sleep(60)\n"
        "opensana.Sana = Slow()\n"
        f"sys.exit(main(['generate', 'x', '-o', {str(tmp_path / 'a.png')!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"loaded\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert b"Traceback" not in error
    assert files(tmp_path) == []


def test_ctrl_c_between_pictures_keeps_those_that_are_done(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time, opensana\n"
        "from PIL import Image\n"
        "from opensana.cli import main\n"
        "from opensana.drawing.picture import Picture\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Slow:\n"
        "    def load(*_, **__): return Slow()\n"
        "    def draw(self, request, **_):\n"
        "        for seed in (1, 2):\n"
        "            yield Picture(Image.new('RGB', (8, 8)), request)\n"
        "        time.sleep(60)\n"
        "opensana.Sana = Slow()\n"
        "sys.exit(main(['generate', 'x', '-n', '64', '-o', '{index}.png']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == [b"0.png\n", b"1.png\n"]
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=10)
    assert (process.returncode, rest) == (130, b"")
    assert error.splitlines()[-1:] == [b"opensana: interrupted"]
    assert files(tmp_path) == ["0.png", "1.png"]


# ------------------------------------------------------------------ the program


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"opensana {opensana.__version__}\n"


def test_the_page_on_the_command_line_is_fresh() -> None:
    page = subprocess.run(
        [sys.executable, "-m", "docs.cli"],
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
    ).stdout.decode("utf-8")
    assert page == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run `make docs`"


def test_the_program_ends_by_itself_where_threads_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "main", lambda: 3)
    ended: list[int] = []
    monkeypatch.setattr(app.os, "_exit", ended.append)
    monkeypatch.setattr(app.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setattr(app.threading, "active_count", lambda: 1)
    app.program()
    assert ended == [3]
    monkeypatch.setattr(app.threading, "active_count", lambda: 2)
    with pytest.raises(SystemExit) as caught:
        app.program()
    assert (caught.value.code, ended) == (3, [3])

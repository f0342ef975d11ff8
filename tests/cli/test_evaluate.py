"""`opensana evaluate` and the --grid that `opensana reconstruct` has as well."""

from pathlib import Path
from typing import Any

import pytest

from opensana.cli import main
from opensana.evaluate import Counts
from tests.cli.painted import PaintedSana, refused


def test_evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[Any] = []

    def evaluate(*arguments: Any, **options: Any) -> dict[str, float]:
        calls.append((arguments, options))
        return {"psnr": 27.5}

    monkeypatch.setattr("opensana.evaluate.evaluate_emoji", evaluate, raising=False)
    asked = ["--data", "d", "--labels", "3", "--grid", "g.png", "--steps", "4", "--size", "512"]
    assert main(["evaluate", "m", *asked]) == 0
    options = {"counts": Counts(labels=3), "grid": Path("g.png"), "steps": 4, "size": 512}
    assert calls == [(("m", Path("d")), options)]
    assert capsys.readouterr().out == "psnr  27.5\n"
    assert main(["evaluate", "m", "--pairs", "-1"]) == 2
    assert "pairs must be 0 or more, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("grid", ["a" * 256, "folder", "/proc/self/g.png"])
@pytest.mark.parametrize("command", ["evaluate", "reconstruct"])
def test_a_grid_that_cannot_be_written_is_refused_before_the_work(
    never_loaded: PaintedSana,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    grid: str,
) -> None:
    (tmp_path / "folder").mkdir()
    refused(capsys, command, "emoji-256", *["folder"] * (command != "evaluate"), "--grid", grid)

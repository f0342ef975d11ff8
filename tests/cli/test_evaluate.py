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


def test_a_benchmark_takes_its_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    calls: list[Any] = []

    def evaluate(options: Any, to: Path, judges: Any, **more: Any) -> dict[str, Any]:
        calls.append((options, to, judges, more))
        fid = {"value": 6.5, "low": 6.0, "high": 7.0, "protocol": "clean"}
        return {
            "pictures": 2,
            "figures": {"fid": fid},
            "categories": {"cats": {"pictures": 1, "fid": {"value": 8.0, "protocol": "clean"}}},
        }

    monkeypatch.setattr("opensana.evaluate.benchmark.run.evaluate_benchmark", evaluate)
    monkeypatch.setattr(
        "opensana.evaluate.benchmark.judges.open_judges", lambda *names, device: names
    )
    asked = ["--benchmark", "b", "--to", str(tmp_path), "--clip", "c", "--protocol", "clean"]
    assert main(["evaluate", "m", *asked, "--part", "2/4", "--limit", "9"]) == 0
    options, to, judges, more = calls[0]
    assert (options.model, options.benchmark, options.protocol) == ("m", "b", "clean")
    assert (options.limit, to, judges, more["part"]) == (9, tmp_path, (None, "c"), (2, 4))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fid", "6.5", "6", "to", "7", "clean"] in rows
    assert ["pictures", "fid", "[clean]"] in rows and ["cats", "1", "8"] in rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["m", "--to", "x"], "--to needs --benchmark"),
        (["m", "--benchmark", "b", "--labels", "3"], "--labels does not go with --benchmark"),
        (["m", "--benchmark", "b"], "--benchmark needs --to"),
        (["m", "--benchmark", "b", "--to", "t", "--part", "5/4"], "K from 1 to N"),
        (["--benchmark", "b", "--to", "t"], "one of them"),
        (["m", "--benchmark", "b", "--to", "t", "--bootstrap", "-1"], "bootstrap must be 0"),
        ([], "name a model"),
    ],
)
def test_wrong_flags_are_refused(
    capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["evaluate", *flags]) == 2
    assert message in capsys.readouterr().err

"""`opensana convert`: its flags."""

from pathlib import Path
from typing import Any

import pytest

from opensana.cli import main


def test_convert(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []

    def convert(source: str, destination: Path, **options: Any) -> Path:
        calls.append((source, destination, options))
        return destination

    monkeypatch.setattr("opensana.models.convert.convert", convert)
    assert main(["convert", "a.pth", "out", "--preset", "p", "--shift", "4", "--ema"]) == 0
    assert calls == [
        (
            "a.pth",
            Path("out"),
            {"preset": "p", "base": None, "shift": 4.0, "ema": True, "heads": None},
        )
    ]
    assert capsys.readouterr().out == "out\n"

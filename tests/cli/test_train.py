"""`opensana train`: the recipe and what is changed of it."""

from pathlib import Path
from typing import Any

import pytest

from opensana.cli import main
from tests.cli.painted import refused


def test_train(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("opensana.train.run", lambda *arguments: calls.append(arguments))
    assert main(["train", "r.toml", "--set", "a.b=1", "--set", "c=x"]) == 0
    assert calls == [(Path("r.toml"), ("a.b=1", "c=x"))]


def test_train_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert "RECIPE" in refused(capsys, "train")


def test_a_missing_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "missing.toml"]) == 2
    assert "missing.toml" in capsys.readouterr().err

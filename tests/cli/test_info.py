"""`opensana info`: a table or JSON."""

import json

import pytest

from opensana.cli import main


def test_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = {"model": "m", "parameters": 1234567, "parts": {"vae": {"dtype": "F16"}}}
    monkeypatch.setattr(
        "opensana.models.describe.describe", lambda model, **_: told | {"model": model}
    )
    assert main(["info", "some"]) == 0
    assert "1,234,567" in capsys.readouterr().out
    assert main(["info", "some", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told | {"model": "some"}


def test_info_of_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "emoji-25"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no model 'emoji-25'" in captured.err

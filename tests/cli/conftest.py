"""The stand-in model in the place of `opensana.Sana`, in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import opensana
from tests.cli.painted import PaintedSana


@pytest.fixture
def sana(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PaintedSana:
    stand_in = PaintedSana()
    monkeypatch.setitem(vars(opensana), "Sana", stand_in)
    monkeypatch.chdir(tmp_path)
    return stand_in


@pytest.fixture
def never_loaded(sana: PaintedSana) -> Iterator[PaintedSana]:
    yield sana
    assert not sana.loads, "the model was loaded before the request was checked"

"""`opensana cost`."""

import json

import pytest

from opensana.cli import main
from tests.cli.painted import refused


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--models", "flux-dev,pixart-alpha", "--device", "A100"]) == 0
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["flux-dev", "11.901", "B", "50", "x", "1", "10.75", "37.19", "209.1", "1954"] in rows
    assert "TMACs of a picture: steps x forward passes, and its decoding" in printed
    assert "least seconds of a picture on A100, bfloat16: 312 T operations/s" in printed


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--models", "sdxl", "--sizes", "512", "--steps", "7", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = found["models"]["sdxl"]
    at = model["sizes"]["512"]
    assert model["steps"] == 7
    assert at["picture"]["macs"] == 14 * at["forward"]["macs"] + at["decode"]["macs"]
    assert found["bytes_a_number"] == 2 and "device" not in found


@pytest.mark.parametrize(
    "flags",
    [
        ("--models", "flux"),
        ("--sizes", "100"),
        ("--steps", "0"),
        ("--device", "A10"),
        ("--dtype", "float32"),
    ],
)
def test_wrong_flags_are_refused(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    refused(capsys, "cost", *flags)

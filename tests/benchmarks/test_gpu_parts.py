"""A part of benchmarks.gpu that fails, dies or hangs is said so, and keeps what it had noted."""

import json
import os
import time
from dataclasses import asdict

import pytest

from benchmarks.gpu.__main__ import DEADLINES, right
from benchmarks.gpu.parts import Note, Outcome, Setting, as_json, run_part


def run(setting: Setting, note: Note) -> None:
    """The part that the tests run: it does what the device's name says."""
    note("first", 1.5)
    if setting.device_name == "fails":
        raise ValueError("no such shape")
    if setting.device_name == "dies":
        os._exit(7)
    if setting.device_name == "hangs":
        time.sleep(600)
    note("last", {"tiny": setting.tiny})
    if setting.device_name == "is wrong":
        note("wrong", ["a norm"])


def outcome(wish: str, seconds: float = 60) -> Outcome:
    return run_part(__name__, seconds, Setting(wish, tiny=True))


def test_a_part_that_ends() -> None:
    found = outcome("works")
    assert (found.status, found.error) == ("done", "")
    assert found.figures == {"first": 1.5, "last": {"tiny": True}}
    assert right(asdict(found)) and not right(asdict(outcome("is wrong")))


@pytest.mark.parametrize(
    ("wish", "status", "said"),
    [
        ("fails", "failed", "ValueError: no such shape"),
        ("dies", "failed", "ended with code 7"),
        ("hangs", "out of time", ""),
    ],
)
def test_a_part_that_does_not(wish: str, status: str, said: str) -> None:
    found = outcome(wish, 1 if wish == "hangs" else 60)
    assert found.status == status and said in found.error
    assert found.figures == {"first": 1.5}
    assert not right(asdict(found))


def test_figures_are_json() -> None:
    value = as_json({"a": float("nan"), "b": [1.0, float("inf")], "c": "text", "d": None})
    assert (
        json.dumps(value, allow_nan=False)
        == '{"a": "nan", "b": [1.0, "inf"], "c": "text", "d": null}'
    )


def test_all_parts_take_nine_minutes_at_most() -> None:
    assert sum(DEADLINES.values()) <= 540

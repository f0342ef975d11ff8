"""What is said of a long piece of work: every ten seconds and at its end, on stderr."""

import pytest

from opensana.workers import progress


def test_the_time_left_follows_from_the_speed_so_far(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 105.0, 120.0, 125.0, 126.0])  # the start, then each report
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    report = progress.progress("pictures")
    for done in (1, 4, 5, 8):
        report(done, 8)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "opensana: 4/8 pictures, 20 s left",
        "opensana: 8/8 pictures, 0 s left",
    ]

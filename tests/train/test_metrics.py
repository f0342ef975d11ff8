"""Metrics: lines after the resumed step are forgotten; a missing extra is said at once.

Also tests `train/monitor/metrics.py`.
"""

import builtins
import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from opensana.errors import MissingExtraError
from opensana.train.monitor.metrics import Metrics, Workload, peak_memory, truncate

VALUES = {"loss": 1.0, "lr": 0.1, "gradient": 2.0}


def metrics(run: Path, *, step: int = 0, tensorboard: bool = False, seconds: float = 0) -> Metrics:
    return Metrics(
        run, step=step, steps=10, work=Workload(2), tensorboard=tensorboard, console_seconds=seconds
    )


def test_lines_and_console(tmp_path: Path, capsys):
    log = metrics(tmp_path)
    log.step(1, VALUES)
    log.event(1, {"psnr": 20.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, **VALUES}, {"step": 1, "psnr": 20.0}]
    said = capsys.readouterr()
    assert said.out == "" and "step 1/10 loss 1.0000" in said.err and "psnr 20" in said.err


def test_speeds_have_a_file_of_their_own_that_resumes_too(tmp_path: Path):
    for first in (0, 2):
        log = metrics(tmp_path, step=first)
        for step in range(first + 1, first + 5):
            log.step(step, VALUES)
        log.close()
    lines = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all({"seconds", "samples_per_second", "peak_memory"} < set(line) for line in lines)


def test_it_is_quiet_between_lines(tmp_path: Path, capsys):
    log = metrics(tmp_path, seconds=60)
    for step in range(1, 5):
        log.step(step, VALUES)
    log.close()
    assert capsys.readouterr().err == ""


def test_resuming_forgets_what_came_after(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "psnr": 1}\n{"step": 3}\n{"ste')
    truncate(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "psnr": 1}\n'
    truncate(path, 0)
    assert path.read_text() == ""


def test_tensorboard_shows_the_same_numbers(tmp_path: Path):
    work = Workload(samples=2, tokens=20, flops=1.0, peak=1e12)
    log = Metrics(tmp_path, step=0, steps=10, work=work, tensorboard=True, console_seconds=60)
    for step in (1, 2, 3):
        log.step(step, {**VALUES, "loss": step / 4, "loss_1of4": 0.5})
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("loss")]
    assert shown == [(1, 0.25), (2, 0.5), (3, 0.75)]
    speeds = ("seconds", "samples_per_second", "tokens_per_second", "mfu", "peak_memory")
    names = {"loss_1of4", "lr", "gradient", *(f"speed/{name}" for name in speeds)}
    assert names <= set(board.Tags()["scalars"])


def test_tensorboard_missing_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without(name: str, *rest, **options):
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"opensana\[train\]"):
        metrics(tmp_path, tensorboard=True)


def test_the_peak_memory_is_that_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch):
    """Not that of a GPU that the machine has as well."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000 + device.index)
    assert peak_memory(torch.device("cpu")) > 2**20
    assert Workload(1).speeds(1.0)["peak_memory"] > 2**20
    assert peak_memory(torch.device("cuda", 1)) == 1001
    assert Workload(1, device=torch.device("cuda", 3)).speeds(1.0)["peak_memory"] == 1003

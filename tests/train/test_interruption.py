"""Whole processes: killed, asked to stop, started twice. The same command always goes on.

Also tests `train/engine/stop.py` and `train/checkpoints/resuming.py`.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from opensana.train.autoencoder.task import train_autoencoder
from opensana.train.checkpoints import checkpoint
from opensana.train.transformer.task import train_transformer

SECONDS = 90


def start(recipe: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "opensana.train", str(recipe)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=SECONDS)
    return said


def lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_lines(run: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while lines(run) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_and_resume(recipe: Path, run: Path, *, kills: int, steps: int) -> str:
    """Kill at random moments spread over the run, then let it end; what the last one said."""
    draw = random.Random(1)
    for kill in range(kills):
        process = start(recipe)
        wait_for_lines(run, (kill + 1) * steps // (kills + 1), process)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        finish(process)
        assert process.returncode == -signal.SIGKILL, "killed before its end"
    process = start(recipe)
    said = finish(process)
    assert process.returncode == 0, said
    return said


def assert_same(whole: Path, parts: Path, step: int) -> None:
    folders = [run / "checkpoints" / f"step-{step:08d}" for run in (whole, parts)]
    names = {path.name for path in folders[0].glob("*.safetensors")}
    assert {"model.safetensors", "ema.safetensors", "optimizer.safetensors"} <= names
    for name in [*names, "state.json"]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    exports = [sorted((run / "export").rglob("*.safetensors")) for run in (whole, parts)]
    assert [p.read_bytes() for p in exports[0]] == [p.read_bytes() for p in exports[1]]


LONG = {"steps": 90, "checkpoint": {"every": 3, "keep": 2}}


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)], ids=["one", "ten"])
def test_killed_transformer_ends_with_the_same_bits(
    transformer_recipe, write_recipe, tmp_path: Path, kills: int
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_transformer(transformer_recipe(run=str(whole), **LONG))
    recipe = write_recipe(transformer_recipe(run=str(parts), **LONG))
    said = kill_and_resume(recipe, parts, kills=kills, steps=90)
    assert "resuming" in said
    assert_same(whole, parts, 90)


@pytest.mark.slow
def test_killed_autoencoder_ends_with_the_same_bits(
    autoencoder_recipe, write_recipe, tmp_path: Path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_autoencoder(autoencoder_recipe(run=str(whole), **LONG))
    recipe = write_recipe(autoencoder_recipe(run=str(parts), **LONG))
    kill_and_resume(recipe, parts, kills=10, steps=90)
    assert_same(whole, parts, 90)


def test_asked_to_stop_it_saves_and_a_second_trainer_is_refused(
    transformer_recipe, write_recipe, tmp_path: Path
):
    run = tmp_path / "run"
    recipe = write_recipe(
        transformer_recipe(steps=100_000, checkpoint={"every": 100_000, "keep": 1})
    )
    first = start(recipe)
    wait_for_lines(run, 5, first)
    second = start(recipe)
    refused = finish(second)
    assert second.returncode == 1 and f"in use by process {first.pid}" in refused
    first.send_signal(signal.SIGTERM)
    said = finish(first)
    assert first.returncode == 0 and "stopped and saved at step" in said
    assert "Traceback" not in said + refused
    (saved,) = (run / "checkpoints").glob("step-*")
    assert int(saved.name[5:]) >= 5


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=$3 tmpfs "$1" || exit 77
"$0" -m opensana.train "$2" --set run="$1/run"
status=$?
cp -r "$1/run" "$4"
exit $status
"""


def test_a_disk_that_fills_up_leaves_valid_checkpoints(
    transformer_recipe, write_recipe, tmp_path: Path
):
    """T5: a file system with room for two checkpoints, of which many are to be kept."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    recipe = transformer_recipe(steps=100, checkpoint={"every": 5, "keep": 20})
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK]
    values = [sys.executable, str(disk), str(write_recipe(recipe)), "1m", str(kept)]
    if shutil.which("unshare") is None:
        pytest.skip("needs a file system of its own")
    done = subprocess.run([*command, *values], stderr=subprocess.PIPE, text=True, timeout=SECONDS)
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("needs the right to mount")
    assert done.returncode == 1 and "No space left" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    saved = sorted((kept / "checkpoints").glob("step-*"))
    assert saved and all(checkpoint.verify(folder) is None for folder in saved)
    train_transformer(replace(recipe, run=str(kept)))
    assert (kept / "checkpoints" / "step-00000100").is_dir()

"""Training under faults, for minutes: `make test-faults`. docs/reliability.md has the figures."""

import json
import os
import random
import signal
import time
from pathlib import Path
from statistics import median

import pytest

from opensana.train.transformer.task import train_transformer
from tests.train import test_parallel as several
from tests.train.test_interruption import assert_same, finish, lines, start, wait_for_lines

pytestmark = pytest.mark.faults
STEPS = 300
LONG = {"steps": STEPS, "checkpoint": {"every": 3, "keep": 2}}


def saving(run: Path) -> bool:
    return any(run.glob("checkpoints/.step-*.tmp"))


def test_fifty_kills_many_of_them_inside_a_save(transformer_recipe, write_recipe, tmp_path: Path):
    """T1: to the bit the run that never stopped, whatever the moments."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_transformer(transformer_recipe(run=str(whole), **LONG))
    recipe, draw, inside = (
        write_recipe(transformer_recipe(run=str(parts), **LONG)),
        random.Random(1),
        0,
    )
    for kill in range(50):
        process = start(recipe)
        wait_for_lines(parts, (kill + 1) * STEPS // 51, process)
        time.sleep(draw.uniform(0, 0.05))
        while kill % 2 and process.poll() is None and not saving(parts):
            pass
        process.kill()
        finish(process)
        assert process.returncode == -signal.SIGKILL, "killed before its end"
        inside += saving(parts)
    process = start(recipe)
    said = finish(process)
    assert process.returncode == 0, said
    assert_same(whole, parts, STEPS)
    print(f"\n50 kills, {inside} of them inside a save")
    assert inside >= 10


def test_twenty_kills_of_one_of_two_processes(transformer_recipe, write_recipe, tmp_path: Path):
    """T2: FSDP; the other ends too, and the run ends with the lines of one never disturbed."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"batch": 4, "steps": STEPS, "checkpoint": {"every": 3, "keep": 2}}
    several.run(
        write_recipe(transformer_recipe(run=str(whole), **options)), 2, "parallel.mode=fsdp"
    )
    recipe = write_recipe(transformer_recipe(run=str(parts), **options))
    draw, slowest = random.Random(2), 0.0
    for kill in range(20):
        process = several.start(recipe, 2, "parallel.mode=fsdp")
        several.wait_for_lines(parts, (kill + 1) * STEPS // 22, process)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(several.workers(process.pid)[draw.randrange(2)], signal.SIGKILL)
        begun = time.monotonic()
        _, said = process.communicate(timeout=60)
        slowest = max(slowest, time.monotonic() - begun)
        assert process.returncode != 0, said
    several.run(recipe, 2, "parallel.mode=fsdp")
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()
    print(f"\n20 kills, the slowest end after {slowest:.1f} s")


def test_twenty_thousand_steps_hold_no_more_memory(
    transformer_recipe, write_recipe, tmp_path: Path
):
    """T12: after a warm-up neither memory nor open files grow."""
    recipe = write_recipe(
        transformer_recipe(
            steps=20_000,
            checkpoint={"every": 1000, "keep": 2, "asynchronous": True},
            evaluate={"every": 5000, "pictures": 4, "batch": 4},
        )
    )
    process, seen = start(recipe), []
    for share in (4000, 12_000, 19_900):
        while process.poll() is None and lines(tmp_path / "run") < share:
            time.sleep(0.05)
        assert process.poll() is None, "it ended early"
        seen.append((held(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))))
    said = finish(process)
    assert process.returncode == 0, said
    print(f"\nmemory (MB) and open files at 4,000, 12,000 and 19,900 steps: {seen}")
    assert seen[-1][0] - seen[0][0] < 50
    assert abs(seen[-1][1] - seen[0][1]) <= 2


def held(process: int) -> float:
    """The memory of a process in megabytes."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


def test_saving_in_the_background_hardly_stops_the_steps(transformer_recipe, tmp_path: Path):
    """T11: how much longer the step around a save takes, for half a gigabyte."""
    wide = {"num_attention_heads": 64, "num_cross_attention_heads": 64, "cross_attention_dim": 512}
    stalls = {}
    for asynchronous in (False, True):
        folder = tmp_path / str(asynchronous)
        recipe = transformer_recipe(
            run=str(folder),
            steps=41,
            model={**transformer_recipe().model, **wide, "num_layers": 8},
            checkpoint={"every": 20, "keep": 1, "asynchronous": asynchronous},
            evaluate={"every": 1000, "pictures": 4, "batch": 4},
            samples={"every": 1000},
        )
        train_transformer(recipe)
        said = (folder / "speed.jsonl").read_text().splitlines()
        seconds = [json.loads(line)["seconds"] for line in said]
        stalls[asynchronous] = seconds[20] - median(seconds[5:19])
    print(f"\nstall of a save: {stalls[False]:.2f} s, in the background {stalls[True]:.2f} s")
    assert stalls[True] < 0.5 * stalls[False]
    names = ("model", "ema", "optimizer")
    folders = [tmp_path / name / "checkpoints" / "step-00000041" for name in ("False", "True")]
    for name in names:
        one, other = ((folder / f"{name}.safetensors").read_bytes() for folder in folders)
        assert one == other

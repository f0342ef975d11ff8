"""What the training runs below a folder have come to, read from their files alone.

    run/recipe.toml     the resolved recipe, also beside every checkpoint
    run/metrics.jsonl   losses and evaluations, a line each
    run/speed.jsonl     how fast each step was, where it is written
    run/lock            held while a trainer is at work

A run may be going on while it is read.
"""

import fcntl
import json
import os
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any, Literal

from opensana.errors import DataError, near
from opensana.train.checkpoints.checkpoint import MANIFEST, PREFIX

METRICS, SPEED = "metrics.jsonl", "samples_per_second"
RECENT = 50
State = Literal["running", "damaged", "finished", "stopped"]


@dataclass(frozen=True)
class Run:
    """One run; what its files do not tell is None."""

    folder: str
    name: str
    kind: str | None
    state: State
    step: int
    steps: int | None
    loss: float | None
    """Of the last step."""
    samples_per_second: float | None
    """The median of the last steps."""
    checkpoint: int | None
    """The step of the newest one."""
    problem: str | None
    """What is damaged."""


def list_runs(folder: Path | str) -> list[Run]:
    """The runs in a folder, or the one that it is; DataError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name the one that holds the runs")
    found = [describe(run) for run in find_runs(folder)]
    if not found:
        raise DataError(f"{folder} holds no training run: there is no {METRICS} in it")
    return found


def find_runs(folder: Path) -> Iterator[Path]:
    """Run folders at any depth, in the order of their names."""
    for path, folders, files in os.walk(folder):
        if METRICS in files:
            folders.clear()
            yield Path(path)
        folders.sort()


def describe(run: Path) -> Run:
    """What the files of a run say."""
    saved = (run / "checkpoints").glob(f"{PREFIX}*")
    newest = max((p for p in saved if p.name.removeprefix(PREFIX).isdecimal()), default=None)
    lines, damage = read_lines(run / METRICS)
    speeds, _ = read_lines(run / "speed.jsonl")
    recipe = _recipe(run) or (_recipe(newest) if newest else {})
    losses = [line for line in lines if "loss" in line]
    step = max((line["step"] for line in lines), default=0)
    steps = recipe.get("steps")
    rates = [line[SPEED] for line in speeds[-RECENT:] if SPEED in line]
    problem = damage or (_damage(newest) if newest else None)
    state: State = "finished" if steps is not None and step >= steps else "stopped"
    state = "running" if _is_locked(run) else "damaged" if problem is not None else state
    return Run(
        folder=str(run),
        name=recipe.get("name", run.name),
        kind=recipe.get("kind"),
        state=state,
        step=step,
        steps=steps,
        loss=losses[-1]["loss"] if losses else None,
        samples_per_second=median(rates) if rates else None,
        checkpoint=int(newest.name.removeprefix(PREFIX)) if newest else None,
        problem=problem,
    )


def read_lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines of a run's file, and what is wrong with it.

    A last line that is cut short is none yet: the run may be writing it, or was killed there.
    """
    if not path.exists():
        return [], None
    *whole, _ = path.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(whole, 1):
        line = _parsed(text)
        if line is None:
            return lines, f"line {number} of {path.name} cannot be read"
        lines.append(line)
    return lines, None


def series(runs: Sequence[Run], metric: str) -> dict[str, list[tuple[int, float]]]:
    """By folder, the steps and values of one metric of the runs that have it.

    DataError names what there is instead, if none has.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    known: set[str] = set()
    for run in runs:
        lines, _ = read_lines(Path(run.folder) / METRICS)
        known.update(*lines)
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        if points:
            found[run.folder] = [(step, value) for step, value in points if isfinite(value)]
    if not found:
        hint, names = near(metric, known), ", ".join(sorted(known - {"step"})) or "none yet"
        raise DataError(f"no run has the metric {metric!r}{hint}; there are: {names}")
    return found


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    numbers = isinstance(line, dict) and all(isinstance(v, int | float) for v in line.values())
    return line if numbers and isinstance(line.get("step"), int) else None


def _recipe(folder: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((folder / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _damage(checkpoint: Path) -> str | None:
    """What is missing or cut short; contents are compared when a run resumes."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        wrong = [n for n, e in files.items() if (checkpoint / n).stat().st_size != e["bytes"]]
    except FileNotFoundError as error:
        return f"{checkpoint.name} lacks {Path(str(error.filename)).name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{checkpoint.name}: {MANIFEST} cannot be used ({error})"
    return f"{checkpoint.name}: {wrong[0]} has not its size" if wrong else None


def _is_locked(run: Path) -> bool:
    try:
        with (run / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False

"""Resuming a run: its newest good checkpoint, and what of the recipe has changed since."""

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from opensana.config import to_toml
from opensana.train.checkpoints import checkpoint
from opensana.train.engine.parallel import Processes
from opensana.train.engine.task import Part
from opensana.train.recipe import Recipe

# Recipe keys that do not affect the result; a resumed run does not report them.
HARMLESS = (
    *("name", "run", "accumulate", "parallel", "checkpoint"),
    *("tensorboard", "console_seconds", "samples"),
)


def newest(run: Path, processes: Processes) -> checkpoint.Checkpoint | None:
    """The newest good checkpoint: rank 0 finds it, every rank opens it."""
    found, step = None, 0
    with processes.raise_together():
        if processes.first:
            found = checkpoint.load_latest(run)
            step = found.step if found else 0
    step = processes.broadcast(step)
    if step == 0:
        return None
    with processes.raise_together():
        return found or checkpoint.at_step(run, step)


def resume(
    found: checkpoint.Checkpoint | None,
    recipe: Recipe,
    parts: Mapping[str, Part],
    processes: Processes,
) -> int:
    """Load what was saved, each process what it needs; returns the step."""
    if found is None:
        return 0
    with processes.raise_together():
        for name, part in parts.items():
            part.load_state_tensors(found.tensors(name))
        if processes.first:
            print(f"resuming {recipe.run} at step {found.step}", file=sys.stderr)
            _report_changes(recipe, found.recipe())
    return found.step


def _report_changes(recipe: Recipe, saved: str) -> None:
    now, before = tomllib.loads(to_toml(recipe)), tomllib.loads(saved)
    changed = [
        key
        for key in sorted(asdict(recipe))
        if key not in HARMLESS and now.get(key) != before.get(key)
    ]
    if changed:
        print(f"the recipe has changed since the checkpoint: {', '.join(changed)}", file=sys.stderr)

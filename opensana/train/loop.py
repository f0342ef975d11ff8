"""What both trainings share: resume, step, report, evaluate, save, stop.

A task says what is trained; this file says in what order things happen, so that a run killed at any
moment and started again by the same command ends with the same bits.
"""

import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from opensana.config import to_toml
from opensana.errors import CheckpointError, NumericsError
from opensana.train import checkpoint
from opensana.train.loader import ahead
from opensana.train.metrics import Metrics
from opensana.train.randomness import seed_of
from opensana.train.recipe import Recipe
from opensana.train.stop import StopRequest
from opensana.weights.files import write_atomic

# Changing these does not change what a step computes, so it needs no word.
HARMLESS = ("name", "run", "checkpoint", "tensorboard", "console_seconds", "samples")


class Part(Protocol):
    """Something a checkpoint holds as named tensors."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class ModuleState:
    """A module as a part of a checkpoint; values are copied in, so memory layouts stay."""

    module: nn.Module

    def state_tensors(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        try:
            self.module.load_state_dict(dict(tensors), strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                "the run folder's checkpoint does not fit this recipe's model; choose another"
                f" `run` folder or the recipe it was made with ({str(error).splitlines()[-1]})"
            ) from error


class Task(Protocol):
    """One kind of training. `prepare` must depend on the step alone."""

    @property
    def parts(self) -> Mapping[str, Part]: ...

    @property
    def items_per_step(self) -> int: ...

    def prepare(self, step: int) -> Any: ...

    def train(self, step: int, batch: Any) -> dict[str, float]: ...

    def evaluate(self) -> dict[str, float]: ...

    def draw(self, step: int) -> None: ...

    def export(self) -> None: ...


def drive(recipe: Recipe, build: Callable[[], Task], *, draw_every: int) -> None:
    """Build a task and run it to its last step, or to the first signal; resume if begun."""
    run = Path(recipe.run)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with checkpoint.locked(run), StopRequest() as stop:
        checkpoint.clean(run / "export")
        task = build()
        done = _resume(run, recipe, task.parts)
        write_atomic(run / "recipe.toml", lambda path: path.write_text(to_toml(recipe), "utf-8"))
        metrics = Metrics(
            run,
            step=done,
            steps=recipe.steps,
            batch=task.items_per_step,
            tensorboard=recipe.tensorboard,
            console_seconds=recipe.console_seconds,
        )
        try:
            _steps(recipe, task, metrics, stop, done=done, draw_every=draw_every)
        finally:
            metrics.close()


def require_finite(step: int, names: Sequence[str], **values: float) -> None:
    """Stop the run at the first number that is none; saved checkpoints stay as they are."""
    for what, value in values.items():
        if not isfinite(value):
            raise NumericsError(
                f"{what} is {value} at step {step + 1}; samples: {', '.join(names)}. The last"
                " checkpoint is untouched; try a lower optimizer.lr or a longer schedule.warmup"
            )


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> float:
    """Scale gradients down to a global norm of at most `limit`; returns the norm before."""
    return float(nn.utils.clip_grad_norm_(parameters, limit))


def _steps(
    recipe: Recipe, task: Task, metrics: Metrics, stop: StopRequest, *, done: int, draw_every: int
) -> None:
    if done >= recipe.steps:
        task.export()
        metrics.say(f"{recipe.run} is finished at step {done}; raise `steps` to go on")
        return
    if done == 0:
        metrics.event(0, task.evaluate())
    for step, batch in enumerate(ahead(task.prepare, done, recipe.steps), done):
        torch.manual_seed(seed_of(recipe.seed, step, "layers"))
        metrics.step(step + 1, task.train(step, batch))
        done, last = step + 1, step + 1 == recipe.steps
        if last or done % recipe.evaluate.every == 0:
            metrics.event(done, task.evaluate())
        if last or done % draw_every == 0:
            task.draw(done)
        if last or stop.wanted or done % recipe.checkpoint.every == 0:
            metrics.sync()
            _save(recipe, task, done)
        if stop.wanted:
            metrics.say(f"stopped and saved at step {done}; the same command resumes")
            return


def _save(recipe: Recipe, task: Task, done: int) -> None:
    checkpoint.save(
        Path(recipe.run),
        done,
        tensors={name: part.state_tensors() for name, part in task.parts.items()},
        state={"kind": recipe.kind, "seed": recipe.seed, "batch": recipe.batch},
        recipe=to_toml(recipe),
        keep=recipe.checkpoint.keep,
    )
    task.export()


def _resume(run: Path, recipe: Recipe, parts: Mapping[str, Part]) -> int:
    found = checkpoint.load_latest(run)
    if found is None:
        return 0
    for name, part in parts.items():
        part.load_state_tensors(found.tensors(name))
    print(f"resuming {run} at step {found.step}", file=sys.stderr)
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

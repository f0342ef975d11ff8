"""What both trainings share: resume, step, report, evaluate, save, stop.

A task says what is trained; this file says in what order things happen, so that a run killed at any
moment and started again by the same command ends with the same bits.
"""

import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
from opensana.train.lock import locked
from opensana.train.metrics import Metrics, Silence, Workload
from opensana.train.parallel import Processes, own, started
from opensana.train.randomness import seed_of
from opensana.train.recipe import Recipe
from opensana.train.saving import Export, Saver
from opensana.train.shards import fitted
from opensana.train.stop import StopRequest
from opensana.weights.files import write_atomic

# Changing these does not change what a step computes, so it needs no word.
HARMLESS = (
    *("name", "run", "accumulate", "parallel", "checkpoint"),
    *("tensorboard", "console_seconds", "samples"),
)


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
        ours = self.module.state_dict()
        try:
            state = {
                name: fitted(tensors, name, ours[name]) if name in ours else tensors[name]
                for name in tensors
            }
            self.module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                "the run folder's checkpoint does not fit this recipe's model; choose another"
                f" `run` folder or the recipe it was made with ({str(error).splitlines()[-1]})"
            ) from error


class Task(Protocol):
    """One kind of training. `prepare` must depend on the step and the process alone.

    All processes call all methods; the first one writes pictures.
    """

    @property
    def parts(self) -> Mapping[str, Part]: ...

    @property
    def work(self) -> Workload: ...

    def prepare(self, step: int) -> Any: ...

    def train(self, step: int, batch: Any) -> dict[str, float]: ...

    def evaluate(self) -> dict[str, float]: ...

    def draw(self, step: int) -> None: ...

    def export(self) -> Export: ...


def drive(recipe: Recipe, build: Callable[[Processes], Task], *, draw_every: int) -> None:
    """Build a task and run it to its last step, or to the first signal; resume if begun.

    Under torchrun every process calls it.
    """
    run = Path(recipe.run)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with ExitStack() as stack:
        processes = stack.enter_context(started(recipe.parallel))
        with processes.together():
            if processes.first:
                stack.enter_context(locked(run))
                checkpoint.clean(run / "export")
        stop = stack.enter_context(StopRequest())
        with processes.together():
            task = build(processes)
        done = _resume(run, recipe, task.parts, processes)
        with processes.together():
            if processes.first:
                text = to_toml(recipe)
                write_atomic(run / "recipe.toml", lambda path: path.write_text(text, "utf-8"))
            metrics = _metrics(recipe, task, done) if processes.first else Silence()
        stack.callback(metrics.close)
        saver = Saver(asynchronous=recipe.checkpoint.asynchronous)
        stack.callback(saver.close)
        session = Session(recipe, task, processes, metrics, saver, stop, draw_every)
        try:
            session.go_on(done)
        except NumericsError as error:
            if processes.first:
                raise
            raise SystemExit(1) from error  # all met it; one of them says so


def require_finite(step: int, names: Sequence[str], **values: float) -> None:
    """Stop the run at the first number that is none; saved checkpoints stay as they are."""
    for what, value in values.items():
        if not isfinite(value):
            raise NumericsError(
                f"{what} is {value} at step {step + 1}; samples: {', '.join(names)}. The last"
                " checkpoint is untouched; try a lower optimizer.lr or a longer schedule.warmup"
            )


@dataclass(frozen=True)
class Session:
    """A task on its way, and all that goes with it."""

    recipe: Recipe
    task: Task
    processes: Processes
    metrics: Metrics | Silence
    saver: Saver
    stop: StopRequest
    draw_every: int

    def go_on(self, done: int) -> None:
        """From step `done` to the last, or to the first signal that any process gets."""
        recipe, task, metrics = self.recipe, self.task, self.metrics
        if done >= recipe.steps:
            self._write(task.export())
            metrics.say(f"{recipe.run} is finished at step {done}; raise `steps` to go on")
            return
        if done == 0:
            metrics.event(0, task.evaluate())
        rank = () if self.processes.alone else (self.processes.rank,)
        for step, batch in enumerate(ahead(task.prepare, done, recipe.steps), done):
            torch.manual_seed(seed_of(recipe.seed, step, "layers", *rank))
            metrics.step(step + 1, task.train(step, batch))
            done, last = step + 1, step + 1 == recipe.steps
            stopped = self.processes.any(self.stop.wanted)
            if last or done % recipe.evaluate.every == 0:
                metrics.event(done, task.evaluate())
            if last or done % self.draw_every == 0:
                task.draw(done)
            if last or stopped or done % recipe.checkpoint.every == 0:
                metrics.sync()
                self._save(done)
            if stopped:
                break
        self.saver.wait()
        if done < recipe.steps:
            metrics.say(f"stopped and saved at step {done}; the same command resumes")

    def _save(self, done: int) -> None:
        """Copy what is to be saved, then write it, now or in the background."""
        recipe, processes = self.recipe, self.processes
        self.saver.wait()
        export = self.task.export()
        writer = checkpoint.Writer(processes.rank, processes.writers, recipe.parallel.timeout)
        if writer.index >= writer.count:
            return
        tensors = {
            name: checkpoint.copied(own(part.state_tensors(), processes))
            for name, part in self.task.parts.items()
        }
        state = {"kind": recipe.kind, "seed": recipe.seed, "batch": recipe.batch}

        def write() -> None:
            checkpoint.save(
                Path(recipe.run),
                done,
                tensors=tensors,
                state=state,
                recipe=to_toml(recipe),
                keep=recipe.checkpoint.keep,
                writer=writer,
            )
            self._write(export)

        self.saver.submit(write)

    def _write(self, export: Export) -> None:
        if self.processes.first:
            export.write()


def _metrics(recipe: Recipe, task: Task, done: int) -> Metrics:
    return Metrics(
        Path(recipe.run),
        step=done,
        steps=recipe.steps,
        work=task.work,
        tensorboard=recipe.tensorboard,
        console_seconds=recipe.console_seconds,
    )


def _resume(run: Path, recipe: Recipe, parts: Mapping[str, Part], processes: Processes) -> int:
    """Load the newest good checkpoint; the first process finds it, each reads what it needs."""
    step = 0
    with processes.together():
        found = checkpoint.load_latest(run) if processes.first else None
        step = found.step if found else 0
    step = processes.told(step)
    if step == 0:
        return 0
    with processes.together():
        found = found or checkpoint.at_step(run, step)
        for name, part in parts.items():
            part.load_state_tensors(found.tensors(name))
        if processes.first:
            print(f"resuming {run} at step {step}", file=sys.stderr)
            _report_changes(recipe, found.recipe())
    return step


def _report_changes(recipe: Recipe, saved: str) -> None:
    now, before = tomllib.loads(to_toml(recipe)), tomllib.loads(saved)
    changed = [
        key
        for key in sorted(asdict(recipe))
        if key not in HARMLESS and now.get(key) != before.get(key)
    ]
    if changed:
        print(f"the recipe has changed since the checkpoint: {', '.join(changed)}", file=sys.stderr)

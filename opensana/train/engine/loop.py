"""What every training shares: resume, step, report, evaluate, save, stop.

A task says what is trained; this file says in what order things happen, so that a run killed at any
moment and started again by the same command ends with the same bits.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TypeVar

import torch

from opensana.config import to_toml
from opensana.errors import CheckpointError, NumericsError
from opensana.files.lock import held
from opensana.files.writing import write_atomic
from opensana.runtime.tf32 import settle_float32
from opensana.train.checkpoints import checkpoint
from opensana.train.checkpoints.export import Export, Saver
from opensana.train.checkpoints.resuming import newest, resume
from opensana.train.engine.before import check_compiler, check_disk, check_writable
from opensana.train.engine.figures import Figures, reads_late
from opensana.train.engine.parallel import Processes, own, started
from opensana.train.engine.precision import check_dtype, settled
from opensana.train.engine.randomness import seed_of
from opensana.train.engine.stop import StopRequest
from opensana.train.engine.task import Task
from opensana.train.monitor.metrics import Metrics, Silence
from opensana.train.monitor.samples import grid_path
from opensana.train.recipe import Recipe
from opensana.workers.threads import in_order

Some = TypeVar("Some", bound=Recipe)


def drive(
    recipe: Some, build: Callable[[Some, Processes], Task], *, draw_every: int | None = None
) -> None:
    """Build a task and run it to its last step, or to the first signal; resume if begun.

    Under torchrun every process calls it. What the run needs later is tried before its first step.
    """
    run = Path(recipe.run)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    with ExitStack() as stack:
        processes = stack.enter_context(started(recipe.parallel))
        with processes.raise_together():
            if processes.first:
                check_writable(run)
                stack.enter_context(locked(run))
                checkpoint.clean(run / "export")
        stop = stack.enter_context(StopRequest())
        found = newest(run, processes)
        with processes.raise_together():
            recipe = settled(recipe, processes, saved=found.recipe() if found else None)
            check_dtype(recipe, processes.device)
            check_compiler(recipe, processes.device)
            settle_float32(processes.device, full=recipe.dtype == "float32")
            task = build(recipe, processes)
        done = resume(found, recipe, task.parts, processes)
        with processes.raise_together():
            if processes.first:
                if done < recipe.steps:
                    check_disk(recipe, task.parts, done=done)
                text = to_toml(recipe)
                write_atomic(run / "recipe.toml", lambda path: path.write_text(text, "utf-8"))
            metrics = Silence()
            if processes.first:
                metrics = Metrics(
                    run,
                    step=done,
                    steps=recipe.steps,
                    work=task.work,
                    tensorboard=recipe.tensorboard,
                    console_seconds=recipe.console_seconds,
                )
        stack.callback(metrics.close)
        saver = Saver(asynchronous=recipe.checkpoint.asynchronous)
        stack.callback(saver.close)
        session = Session(recipe, task, processes, metrics, saver, stop, draw_every)
        try:
            session.run(done)
        except NumericsError as error:
            if processes.first:
                raise
            raise SystemExit(1) from error  # all met it; one of them says so


def require_finite(step: int, names: Sequence[str], **values: float) -> None:
    """NumericsError at the first NaN or infinity; saved checkpoints stay as they are."""
    for what, value in values.items():
        if not isfinite(value):
            raise NumericsError(
                f"{what} is {value} at step {step + 1}; samples: {', '.join(names)}. The last"
                " checkpoint is untouched; try a lower optimizer.lr or a longer schedule.warmup"
            )


@dataclass(frozen=True)
class Session:
    """A task in training, and what it reports to, saves with and is stopped by."""

    recipe: Recipe
    task: Task
    processes: Processes
    metrics: Metrics | Silence
    saver: Saver
    stop: StopRequest
    draw_every: int | None
    unread: list[tuple[int, Figures]] = field(default_factory=list[tuple[int, Figures]])
    """Steps that are launched and not yet reported, by the count of steps then done."""
    undrawn: list[str] = field(default_factory=list[str])
    """Why samples could not be drawn, each time."""

    def run(self, done: int) -> None:
        """From step `done` to the last, or to the first signal that any process gets.

        The work of a step is saved before it is measured and drawn, which may fail. What a run that
        was killed in between had not reported yet, the next one reports first.
        """
        recipe, task, metrics = self.recipe, self.task, self.metrics
        if not self.processes.broadcast(metrics.reported):
            self._measure(done, saved=True)
        drawn = grid_path(Path(recipe.run), done).exists()
        if done > 0 and not self.processes.broadcast(drawn):
            self._draw(done)
        if done >= recipe.steps:
            self._write(task.export())
            metrics.say(f"{recipe.run} is finished at step {done}; raise `steps` to go on")
            return
        rank = () if self.processes.alone else (self.processes.rank,)
        late = reads_late(self.processes.device)
        # One step ahead: a thread prepares the next batch while this one is trained on.
        steps = range(done, recipe.steps)
        batches = in_order(task.prepare, steps, workers=1, ahead=1)
        for step, batch in enumerate(batches, done):
            torch.manual_seed(seed_of(recipe.seed, step, "layers", *rank))
            self.unread.append((step + 1, task.train(step, batch)))
            self._report(leave=1 if late else 0)
            done = step + 1
            stopped = self.processes.any(self.stop.wanted)
            saved = stopped or self._due(done, recipe.checkpoint.every)
            if saved:
                self._report()
                metrics.sync()
                self._save(done)
            if stopped and done < recipe.steps:
                break
            self._measure(done, saved=saved)
            self._draw(done)
        self.saver.wait()
        if self.undrawn:
            metrics.say(
                f"samples could not be drawn {len(self.undrawn)} times, first: {self.undrawn[0]}"
            )
        if done < recipe.steps:
            metrics.say(f"stopped and saved at step {done}; the same command resumes")

    def _due(self, done: int, every: int) -> bool:
        return done == self.recipe.steps or done % every == 0

    def _report(self, *, leave: int = 0) -> None:
        """Report the steps that are not yet, but for so many of the last; all before a save."""
        while len(self.unread) > leave:
            step, figures = self.unread.pop(0)
            self.metrics.step(step, figures())

    def _measure(self, done: int, *, saved: bool) -> None:
        """Evaluate where it is due; the step is saved even if that fails."""
        if not self._due(done, self.recipe.evaluate.every):
            return
        self._report()
        try:
            figures = self.task.evaluate()
        except Exception:
            if not saved and self.processes.alone:  # others may not get to a save
                self.metrics.sync()
                self._save(done)
            raise
        self.metrics.event(done, figures)

    def _draw(self, done: int) -> None:
        """Draw samples where they are due; a failure is said and counted, and ends nothing."""
        if self.draw_every is None or not self._due(done, self.draw_every):
            return
        self._report()
        try:
            self.task.draw(done)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.undrawn.append(f"step {done}: {reason}")
            self.metrics.say(f"step {done}: no samples, the training goes on: {reason}")

    def _save(self, done: int) -> None:
        """Copy what is to be saved, then write it, now or in the background; then the export."""
        recipe, processes = self.recipe, self.processes
        self.saver.wait()
        writer = checkpoint.Writer(processes.rank, processes.writers, recipe.parallel.timeout)
        if writer.index < writer.count:
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

            self.saver.submit(write)
        export = self.task.export()
        self.saver.submit(lambda: self._write(export))

    def _write(self, export: Export) -> None:
        if self.processes.first:
            export.write()


def locked(run: Path) -> AbstractContextManager[None]:
    """Hold the run folder; a second trainer on it is refused at once."""
    run.mkdir(parents=True, exist_ok=True)
    tip = "stop that training or choose another `run` folder"
    return held(run, lambda owner: CheckpointError(f"{run} is in use by {owner}; {tip}"))

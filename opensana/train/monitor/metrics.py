"""What a run reports: JSON lines, TensorBoard, and a progress line on stderr.

`metrics.jsonl` holds only what the recipe determines, so an interrupted and resumed run leaves the
same lines as one that was not; speeds and memory go to `speed.jsonl`.
"""

import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from opensana.errors import MissingExtraError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Workload:
    """One step of all processes: samples, tokens, floating-point operations; 0 is unknown.

    `peak` is what all devices together can do, in operations a second; `device` is this process's.
    """

    samples: int
    tokens: int = 0
    flops: float = 0.0
    peak: float = 0.0
    device: torch.device = CPU

    def speeds(self, seconds: float) -> dict[str, float]:
        """Figures of a step that took so long, and the memory of this process, in bytes.

        `mfu` is the share of `peak_flops` that the model's own operations use; what is computed
        twice (`checkpoint_activations`) counts once.
        """
        found = {"seconds": seconds, "samples_per_second": self.samples / seconds}
        if self.tokens:
            found["tokens_per_second"] = self.tokens / seconds
        if self.flops and self.peak:
            found |= {"mfu": self.flops / seconds / self.peak, "peak_flops": self.peak}
        return {**found, "peak_memory": peak_memory(self.device)}


class Metrics:
    """Writes each step's figures; opened at `step`, it forgets what was written after it."""

    def __init__(
        self,
        run: Path,
        *,
        step: int,
        steps: int,
        work: Workload,
        tensorboard: bool,
        console_seconds: float,
    ) -> None:
        self.path = run / "metrics.jsonl"
        self.work, self.steps = work, steps
        self.board = _board(run, step) if tensorboard else None
        truncate(self.path, step)
        truncate(run / "speed.jsonl", step)
        self.reported = was_reported(self.path, step)
        """Whether the evaluation at the step where it was opened has been recorded."""
        self._stream = self.path.open("a", encoding="utf-8")
        self._speeds = (run / "speed.jsonl").open("a", encoding="utf-8")
        self._progress = Progress(step, steps, seconds=console_seconds)
        self._last = time.monotonic()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Record one optimiser step (1-based: the number of steps done)."""
        now = time.monotonic()
        speeds = self.work.speeds(max(now - self._last, 1e-9))
        self._last = now
        self._write(step, values)
        self._speeds.write(json.dumps({"step": step, **speeds}) + "\n")
        self._to_board(step, {f"speed/{name}": value for name, value in speeds.items()})
        self._progress.update(step, values, speeds["samples_per_second"])

    def event(self, step: int, values: Mapping[str, float]) -> None:
        """Record an evaluation; it is also said aloud."""
        self._write(step, values)
        figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._progress.say(f"step {step}: {figures}")
        self._last = time.monotonic()

    def say(self, line: str) -> None:
        self._progress.say(line)
        self._last = time.monotonic()

    def sync(self) -> None:
        """Make the lines so far survive a power failure; called before a checkpoint is made."""
        self._speeds.flush()
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()
        self._speeds.close()
        self._progress.close()
        if self.board:
            self.board.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()
        self._to_board(step, values)

    def _to_board(self, step: int, values: Mapping[str, float]) -> None:
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)


class Silence:
    """The metrics of a process that is not the first."""

    reported = False

    def step(self, step: int, values: Mapping[str, float]) -> None: ...

    def event(self, step: int, values: Mapping[str, float]) -> None: ...

    def say(self, line: str) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


class Progress:
    """A bar with the time left on a terminal; elsewhere one line every so many seconds."""

    def __init__(self, step: int, steps: int, *, seconds: float) -> None:
        self.seconds = seconds
        self.steps, self._start = steps, step
        self._begun = self._said = time.monotonic()
        self._loss = self._speed = 0.0
        bar = {"total": steps, "initial": step, "unit": "step", "dynamic_ncols": True}
        self._bar = tqdm(file=sys.stderr, **bar) if sys.stderr.isatty() else None

    def update(self, step: int, values: Mapping[str, float], speed: float) -> None:
        self._loss = _smooth(self._loss, values["loss"])
        self._speed = _smooth(self._speed, speed)
        if self._bar:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix(loss=f"{self._loss:.4f}", speed=f"{self._speed:.1f}/s")
        elif time.monotonic() - self._said >= self.seconds:
            self._said = time.monotonic()
            self.say(self._line(step, values))

    def say(self, line: str) -> None:
        if self._bar:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.close()

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        done = step - self._start
        left = (time.monotonic() - self._begun) / done * (self.steps - step)
        return (
            f"step {step}/{self.steps} loss {self._loss:.4f} lr {values['lr']:.2e}"
            f" gradient {values['gradient']:.3f} {self._speed:.1f} samples/s"
            f" {tqdm.format_interval(left)} left"
        )


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held: on the CUDA device that it trains on, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def truncate(path: Path, step: int) -> None:
    """Drop lines written after `step`, and a last line cut short."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n") or json.loads(line)["step"] > step:
                break
            kept += len(line)
    os.truncate(path, kept if step > 0 else 0)


def was_reported(path: Path, step: int) -> bool:
    """Whether the last line is the evaluation after `step`: one more than the step's own."""
    if not path.exists():
        return False
    with path.open("rb") as stream:
        steps = [json.loads(line)["step"] for line in deque(stream, maxlen=2)]
    return steps.count(step) == (2 if step else 1)


def _smooth(average: float, value: float) -> float:
    return value if average == 0 else 0.95 * average + 0.05 * value


def _board(run: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("train", "tensorboard") from error
    return SummaryWriter(run / "tensorboard", purge_step=step + 1)

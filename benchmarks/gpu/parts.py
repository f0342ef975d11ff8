"""Parts of one program, each in a process of its own that is ended at its deadline.

What a part has noted until then stays. A part that fails, hangs or dies takes nothing else along:
not even a fault of the device reaches the next one.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import isfinite
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any, Literal

import torch

Note = Callable[[str, object], None]
"""Called with the name and the value of a figure as soon as it is known; values become JSON."""
Status = Literal["done", "failed", "out of time"]
STARTING = 120.0
"""Seconds in which a process must have imported what it needs."""
LEAVING = 5.0
"""Seconds for a process that is done to put its things away."""
PRELOADED = ["torch", "opensana.pipeline", "transformers.models.gemma2.modeling_gemma2"]


@dataclass(frozen=True)
class Setting:
    """Where a part runs, and whether with tiny shapes: then its figures say nothing."""

    device_name: str
    tiny: bool = False

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_name)

    @property
    def dtype(self) -> torch.dtype:
        """What is timed: bfloat16, and float32 where the device has no bfloat16."""
        from opensana.device import has_bfloat16

        return torch.bfloat16 if has_bfloat16(self.device) else torch.float32


@dataclass
class Outcome:
    """How a part ended, and all that it had noted."""

    status: Status
    seconds: float
    deadline: float
    figures: dict[str, Any]
    error: str = ""


def run_part(module: str, seconds: float, setting: Setting) -> Outcome:
    """Run `module.run(setting, note)` for at most so many seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, module, setting), daemon=True)
    figures: dict[str, Any] = {}
    process.start()
    theirs.close()
    status: Status = "out of time"
    error = ""
    ours.poll(STARTING)  # the first message says that imports are done
    begun = monotonic()
    while ours.poll(max(0.0, begun + seconds - monotonic())):
        try:
            kind, name, value = ours.recv()
        except EOFError:
            process.join()
            status, error = "failed", f"its process ended with code {process.exitcode}"
            break
        if kind == "begun":
            continue
        if kind == "figure":
            figures[name] = value
            continue
        status, error = kind, value
        break
    taken = monotonic() - begun
    process.join(0 if status == "out of time" else LEAVING)
    process.kill()
    process.join()
    return Outcome(status, round(taken, 1), seconds, figures, error)


def _work(pipe: Connection, module: str, setting: Setting) -> None:
    def note(name: str, value: object) -> None:
        pipe.send(("figure", name, as_json(value)))

    if setting.tiny:  # at these sizes threads cost more than they bring
        torch.set_num_threads(1)
    try:
        part = import_module(module)
        pipe.send(("begun", "", ""))
        part.run(setting, note)
        pipe.send(("done", "", ""))
    except Exception:
        pipe.send(("failed", "", traceback.format_exc(limit=-4)))


def as_json(value: object) -> object:
    """NaN and infinity as words: JSON has no numbers for them."""
    if isinstance(value, dict):
        return {name: as_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_json(inner) for inner in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value

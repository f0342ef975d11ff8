"""What every benchmark shares: sides called in turn in one process, and where that was."""

import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

TICK = 0.01
"""Seconds in which Linux counts processor time."""


def processor_seconds() -> float:
    """Of this process, by thread: the clock of a machine that others use at the same time.

    Threads that wait for each other must not spin (OMP_WAIT_POLICY=passive).
    """
    return time.process_time() / torch.get_num_threads()


def medians(
    sides: Sequence[Callable[[], object]],
    repeats: int,
    *,
    warm: bool = True,
    quiet: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Median seconds of each side, called once a round, after an unmeasured call to `warm`.

    The order changes from round to round: what a side leaves behind, caches and freed memory, is
    met by each of the others. With `quiet` a call is repeated if meanwhile other processes used
    the processor, as on a machine that is shared (Linux only).
    """
    order = random.Random(1)
    for side in sides if warm else ():
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for place in order.sample(range(len(sides)), len(sides)):
            while (taken := _timed(sides[place], clock, quiet=quiet)) is None:
                time.sleep(1)
            times[place].append(taken)
    return [statistics.median(taken) for taken in times]


def _timed(side: Callable[[], object], clock: Callable[[], float], *, quiet: bool) -> float | None:
    """Seconds of one call; None if `quiet` and others used a twentieth of a processor meanwhile."""
    everyone, own, start = _everyone() if quiet else 0.0, time.process_time(), clock()
    side()
    taken, own = clock() - start, time.process_time() - own
    others = _everyone() - everyone - own if quiet else 0.0
    return taken if others <= taken / 20 + 2 * TICK else None


def _everyone() -> float:
    """Seconds of processor time that all processes have used."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system) * TICK


def finished(device: torch.device, side: Callable[[], object]) -> Callable[[], object]:
    """The same call, which returns once the device has done all of it."""
    if device.type == "cpu":
        return side

    def call() -> object:
        made = side()
        torch.accelerator.synchronize(device)
        return made

    return call


def machine() -> dict[str, object]:
    """The date, processor, threads and versions that a figure belongs to."""
    packages = ("torch", "transformers", "diffusers")
    return {
        "date": date.today().isoformat(),
        "cpu": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if "model name" in x), "unknown")

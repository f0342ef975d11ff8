"""What every benchmark shares: sides called in turn in one process, and where that was."""

import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch


def medians(
    sides: Sequence[Callable[[], object]], repeats: int, *, warm: bool = True
) -> list[float]:
    """Median seconds of each side, called once a round, after an unmeasured call to `warm`.

    The order changes from round to round: what a side leaves behind, caches and freed memory, is
    met by each of the others.
    """
    order = random.Random(1)
    for side in sides if warm else ():
        side()
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for place in order.sample(range(len(sides)), len(sides)):
            start = time.perf_counter()
            sides[place]()
            times[place].append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def machine() -> dict[str, object]:
    """The date, processor, threads and versions that a figure belongs to."""
    packages = ("torch", "transformers", "diffusers")
    return {
        "date": date.today().isoformat(),
        "cpu": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.partition(":")[2].strip() for x in lines if "model name" in x), "unknown")

"""Times and errors of the parts, in figures short enough to read."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.gpu.parts import Setting
from benchmarks.timing import finished, medians
from opensana.errors import OutOfMemory

Call = Callable[[], object]
FAILED = "failed"
"""How the figure of a fault begins."""


def short(value: float) -> float:
    """Four digits that count."""
    return float(f"{value:.4g}")


def milliseconds(
    setting: Setting, calls: Mapping[str, Call], *, repeats: int = 5, times: int = 1
) -> dict[str, float]:
    """The median of each call, in turn; of so many `times` in a row where one is too short."""

    def in_a_row(call: Call) -> Call:
        def run() -> None:
            for _ in range(times):
                call()

        return finished(setting.device, run)

    repeats = 1 if setting.tiny else repeats
    found = medians([in_a_row(call) for call in calls.values()], repeats)
    return {name: short(1000 * s / times) for name, s in zip(calls, found, strict=True)}


def relative(found: Tensor, expected: Tensor) -> float:
    """The length of the difference over that of what is expected; NaN stays NaN."""
    found, expected = (x.detach().cpu().double() for x in (found, expected))
    return short(float((found - expected).norm() / expected.norm()))


def peak_memory(device: torch.device, call: Call) -> int | None:
    """The most bytes that a CUDA device had allocated during a call; None elsewhere."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    finished(device, call)()
    return torch.cuda.max_memory_allocated(device)


def attempt(setting: Setting, call: Callable[[], object]) -> object:
    """What a call gives, or in one line why there is nothing; the next one may still go well.

    What a device lacks, and too little memory, are answers. Any other fault makes the run fail:
    in tiny shapes at once, else when all has been measured.
    """
    try:
        return call()
    except (NotImplementedError, torch.OutOfMemoryError, OutOfMemory) as error:
        return f"not here: {_line(error)}"
    except Exception as error:
        if setting.tiny:
            raise
        return f"{FAILED}: {type(error).__name__}: {_line(error)}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

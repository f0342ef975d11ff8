"""When memory ends while a network runs: everything is freed, so that less can be tried."""

from collections.abc import Callable
from typing import TypeVar

import torch

from opensana.errors import OutOfMemory

Result = TypeVar("Result")
# How torch says it where it has no error of its own: on a CPU, and on an Apple GPU.
WORDS = ("can't allocate memory", "out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory is too short, of the system's or of a GPU's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def attempt(act: Callable[[], Result], device: torch.device) -> Result | None:
    """What `act` returns; None where memory ran out, which is then free again."""
    try:
        return act()
    except Exception as error:
        if not ran_out(error):
            raise
    # Only behind the handler: until then the error holds every tensor that was at work.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    return None

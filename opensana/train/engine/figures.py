"""What a step found, and when the host reads it.

On a CPU the numbers are read before the update, which one that is not finite stops. A GPU runs
behind its host, and each number that is read is a wait for all that was launched before. So on CUDA
a step's numbers travel while the next step runs, and are read when that has been launched. What is
not finite is known to the device at once: it holds back its update and all that follow, until the
host has read of it and stops.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from opensana.device import has_own_memory

Figures = Callable[[], dict[str, float]]
"""Waits for the figures of a step, and returns them."""
Tell = Callable[[dict[str, Tensor]], dict[str, float]]
"""Makes figures of numbers on the CPU, or raises NumericsError."""


def reads_late(device: torch.device) -> bool:
    """Whether a step's figures are read when the next one has been launched.

    Not on an Apple GPU: torch has no wait there for one copy alone.
    """
    return has_own_memory(device)


class Watch:
    """Reads the numbers of a run's steps, and keeps whether all were finite.

    `found_inf` [] is 1.0, on the device, from the first number on that was not finite; None where
    the host reads before an update.
    """

    def __init__(self, device: torch.device) -> None:
        self.late = reads_late(device)
        self.found_inf: Tensor | None = None

    def read(self, numbers: Mapping[str, Tensor], tell: Tell) -> Figures:
        """What `tell` makes of float32 numbers of any shapes; to be called before an update."""
        numbers = {name: value.detach() for name, value in numbers.items()}
        if all(value.device.type == "cpu" for value in numbers.values()) and not self.late:
            found = tell(numbers)
            return lambda: found
        flat = torch.cat([value.flatten() for value in numbers.values()])
        arrived = sent_to_host(flat)
        shapes = {name: value.shape for name, value in numbers.items()}

        def told() -> dict[str, float]:
            parts = arrived().split([shape.numel() for shape in shapes.values()])
            return tell({n: p.view(shapes[n]) for n, p in zip(shapes, parts, strict=True)})

        if not self.late:
            found = told()
            return lambda: found
        wrong = flat.isfinite().all().logical_not().float()
        known = self.found_inf
        self.found_inf = wrong if known is None else torch.maximum(known, wrong)
        return told


def sent_to_host(numbers: Tensor) -> Callable[[], Tensor]:
    """Copy to the CPU behind what was launched, into pinned memory; the result waits for it."""
    copied = numbers.to("cpu", non_blocking=has_own_memory(numbers.device))
    if numbers.device.type != "cuda":
        return lambda: copied
    arrived = torch.cuda.Event(blocking=True)
    arrived.record(torch.cuda.current_stream(numbers.device))

    def wait() -> Tensor:
        arrived.synchronize()
        return copied

    return wait

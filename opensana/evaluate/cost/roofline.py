"""The least time a device needs: each product is bound by its arithmetic or by memory.

    seconds = sum over products of max(2 MACs / peak, bytes / bandwidth)

(Williams et al. 2009). Kernels reach a part of both, so real times are longer.
"""

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from opensana.device import resolve_device, resolve_dtype
from opensana.errors import RequestError, near
from opensana.evaluate.cost.sheet import Sheet
from opensana.models.flops import PEAKS, measured_peak

THIS = "this"
# 10^12 bytes a second, by the data sheets; A100 without more is the 80 GB module.
BANDWIDTHS: dict[str, float] = {
    "A100": 2.039,
    "A100-PCIE": 1.555,
    "A100 80GB PCIe": 1.935,
    "H100": 3.35,
    "H200": 4.8,
    "L40S": 0.864,
    "B200": 8.0,
    "GeForce RTX 4090": 1.008,
}
COPIED = 1 << 28
"""Bytes of the copy that measures bandwidth, beyond any cache."""


class Limits(NamedTuple):
    """What a device can do in one number format."""

    name: str
    dtype: torch.dtype
    peak: float
    """Operations a second."""
    bandwidth: float
    """Bytes a second."""


@dataclass(frozen=True)
class Bound:
    """The least seconds, and the part of them in which memory is what is waited for."""

    seconds: float
    waiting: float


def limits(device: str, dtype: str | None = None) -> Limits:
    """Of a device by name, or of this machine, measured now: it takes a second or two."""
    if device == THIS:
        where = resolve_device("auto")
        number = resolve_dtype(where, dtype, torch.bfloat16)
        return Limits(where.type, number, measured_peak(where, number), measured_bandwidth(where))
    if device not in PEAKS:
        known = (THIS, *PEAKS)
        raise RequestError(
            f"unknown device {device!r}{near(device, known)}; there are {', '.join(known)}"
        )
    number = torch.float32 if dtype == "float32" else torch.bfloat16
    return Limits(device, number, PEAKS[device][number] * 1e12, BANDWIDTHS[device] * 1e12)


def measured_bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, which reads and writes each once; the best of a few."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target, seconds = torch.empty_like(source), []
    for _ in range(5):
        begun = time.perf_counter()
        target.copy_(source)
        int(target[0])  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return 2 * COPIED / min(seconds)


def bound(sheet: Sheet, device: Limits) -> Bound:
    """The least time in which a device runs all products of a sheet, one after another."""
    total = waiting = 0.0
    for product, count in sheet.products.items():
        arithmetic = 2 * product.macs / device.peak
        memory = product.numbers * device.dtype.itemsize / device.bandwidth
        total += count * max(arithmetic, memory)
        waiting += count * memory if memory > arithmetic else 0.0
    return Bound(total, waiting / total)

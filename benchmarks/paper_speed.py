"""The speeds that the Sana paper prints (arXiv 2410.10629, tables 7 and 14), and what they imply.

On one A100 in float16: seconds of a picture at batch 1, and pictures a second at batch 16.
"""

from typing import NamedTuple

import torch

from opensana.evaluate.cost.catalogue import PAINTERS
from opensana.models.flops import PEAKS


class Speed(NamedTuple):
    """Seconds of a picture alone, and pictures a second in a batch of 16."""

    latency: float
    throughput: float


PRINTED: dict[int, dict[str, Speed]] = {
    512: {
        "pixart-sigma": Speed(1.2, 1.5),
        "sana-0.6b": Speed(0.8, 6.7),
        "sana-1.6b": Speed(0.6, 3.8),
    },
    1024: {
        "flux-dev": Speed(23.0, 0.04),
        "sd3-medium": Speed(4.4, 0.28),
        "pixart-sigma": Speed(2.7, 0.4),
        "sana-0.6b": Speed(0.9, 1.7),
        "sana-1.6b": Speed(1.2, 1.0),
    },
    2048: {
        "flux-dev": Speed(117, 0.008),
        "sd3-medium": Speed(22, 0.04),
        "pixart-sigma": Speed(18.1, 0.06),
        "sana-0.6b": Speed(2.5, 0.43),
        "sana-1.6b": Speed(4.1, 0.25),
    },
    4096: {
        "flux-dev": Speed(1023, 0.001),
        "sd3-medium": Speed(230, 0.004),
        "pixart-sigma": Speed(186, 0.005),
        "sana-0.6b": Speed(9.6, 0.104),
        "sana-1.6b": Speed(5.9, 0.066),
    },
}
# 5.9 s would need more than the device has (`impossible`). A digit may be lost: 15.9 s is 3.9 times
# the 4.1 s at half the side, and 1 / 0.066 = 15.2 s a picture in a batch.
LIKELY = {(4096, "sana-1.6b"): 15.9}
PEAK = PEAKS["A100"][torch.bfloat16]


def rate(model: str, size: int, seconds: float) -> float:
    """10^12 operations a second, if a picture took so long."""
    return 2 * PAINTERS[model].picture(size).macs / seconds / 1e12


def impossible() -> list[tuple[int, str]]:
    """The sizes and models whose printed latency needs more than the A100's peak."""
    return [
        (size, model)
        for size, models in PRINTED.items()
        for model, speed in models.items()
        if rate(model, size, speed.latency) > PEAK
    ]

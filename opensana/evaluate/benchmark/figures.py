"""The figures of a set of features, each with its interval and its protocol.

Intervals are of 95 %: the figure and 1.96 standard deviations. They say how far it would move with
other drawn pictures from the same model. The reference is taken as given, and so is what FID owes
to the number of pictures: compare FIDs of equally many.

N drawn pictures, M reference ones, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opensana.evaluate.benchmark.statistics import moments_of
from opensana.metrics.feature_sets import NEAREST, cmmd, kid, overlap
from opensana.metrics.frechet import Gaussian, Moments, frechet_from

NORMAL_95 = 1.96
SEED = 0
"""Of the resampling: the same features have the same interval."""


@dataclass(frozen=True)
class Figure:
    """A figure; `protocol` says what it may be compared with."""

    value: float
    low: float | None
    high: float | None
    protocol: str


def figure(value: float, deviation: float | None, protocol: str) -> Figure:
    if deviation is None:
        return Figure(value, None, None, protocol)
    reach = NORMAL_95 * deviation
    return Figure(value, value - reach, value + reach, protocol)


def deviation_of_mean(parts: np.ndarray) -> float:
    """The standard deviation of a mean: what resampling its parts tends to."""
    return float(np.std(parts, ddof=1) / np.sqrt(len(parts))) if len(parts) > 1 else float("nan")


def mean_figure(parts: np.ndarray, protocol: str) -> Figure:
    return figure(float(parts.mean()), deviation_of_mean(parts), protocol)


def frechet_figure(
    drawn: np.ndarray, reference: Moments | Gaussian, protocol: str, *, replicates: int = 0
) -> Figure:
    """The Fréchet distance; its deviation is that of so many resamplings of the drawn pictures."""
    distance = frechet_from(reference)
    value = distance(moments_of(drawn))
    if replicates < 2:
        return figure(value, None, protocol)
    generator, count = np.random.default_rng(SEED), len(drawn)
    found = []
    for _ in range(replicates):
        counts = generator.multinomial(count, np.full(count, 1 / count))
        found.append(distance(moments_of(drawn, counts)))
    return figure(value, float(np.std(found, ddof=1)), protocol)


def set_figures(
    drawn: np.ndarray, reference: np.ndarray, protocol: str, *, overlaps: bool = True
) -> dict[str, Figure]:
    """KID, and precision, recall, density and coverage where there are enough pictures."""
    value, influence = kid(drawn, reference)
    found = {"kid": figure(value, deviation_of_mean(influence), protocol)}
    if overlaps and min(len(drawn), len(reference)) > NEAREST:
        for name, parts in vars(overlap(drawn, reference)).items():
            found[name] = mean_figure(parts, protocol)
    return found


def cmmd_figure(drawn: np.ndarray, reference: np.ndarray, protocol: str) -> Figure:
    value, influence = cmmd(drawn, reference)
    return figure(value, deviation_of_mean(influence), protocol)


def rows_by_category(categories: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of each category's pictures, if there is more than one category."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(categories):
        found.setdefault(name, []).append(row)
    return dict(sorted(found.items())) if len(found) > 1 else {}


def plain(figures: dict[str, Figure]) -> dict[str, Any]:
    """As plain values; an interval that is not known is left out."""
    return {
        name: {key: value for key, value in vars(figure).items() if value is not None}
        for name, figure in figures.items()
    }

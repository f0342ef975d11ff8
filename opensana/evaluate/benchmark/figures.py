"""The figures of a set of features, each with its interval and its protocol.

Intervals are of 95 %: the figure and 1.96 standard deviations. They say how far it would move with
other drawn pictures from the same model. The reference is taken as given, and so is what FID owes
to the number of pictures: compare FIDs of equally many.

N drawn pictures, M reference ones, D features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from opensana.evaluate.benchmark.statistics import moments_of
from opensana.metrics.feature_sets import NEAREST, cmmd, kid, overlap
from opensana.metrics.frechet import Gaussian, frechet_from, frechet_of_roots, root_of

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
    if deviation is None or not math.isfinite(deviation):
        return Figure(value, None, None, protocol)
    reach = NORMAL_95 * deviation
    return Figure(value, value - reach, value + reach, protocol)


def deviation_of_mean(parts: np.ndarray) -> float:
    """The standard deviation of a mean: what resampling its parts tends to."""
    return float(np.std(parts, ddof=1) / np.sqrt(len(parts))) if len(parts) > 1 else float("nan")


def mean_figure(parts: np.ndarray, protocol: str) -> Figure:
    return figure(float(parts.mean()), deviation_of_mean(parts), protocol)


def frechet_figure(
    drawn: np.ndarray,
    reference: np.ndarray | Gaussian,
    protocol: str,
    *,
    replicates: int = 0,
) -> Figure:
    """The Fréchet distance; its deviation is that of so many resamplings of the drawn pictures."""
    distance = _distances(drawn, reference)
    value = distance(None)
    if replicates < 2:
        return figure(value, None, protocol)
    generator, count = np.random.default_rng(SEED), len(drawn)
    found = []
    for _ in range(replicates):
        found.append(distance(generator.multinomial(count, np.full(count, 1 / count))))
    whole = figure(value, float(np.std(found, ddof=1)), protocol)
    return replace(whole, low=None if whole.low is None else max(0.0, whole.low))


def _distances(
    drawn: np.ndarray, reference: np.ndarray | Gaussian
) -> Callable[[np.ndarray | None], float]:
    """The distance of the drawn pictures, each taken as often as its count says."""
    if isinstance(reference, Gaussian):
        known = frechet_from(reference)
    elif max(len(drawn), len(reference)) <= drawn.shape[1] // 2:
        root = root_of(torch.from_numpy(np.array(reference)))
        features = torch.from_numpy(np.array(drawn))

        def few(counts: np.ndarray | None) -> float:
            often = None if counts is None else torch.from_numpy(counts)
            return frechet_of_roots(root, root_of(features, often))

        return few
    else:
        known = frechet_from(moments_of(reference))
    return lambda counts: known(moments_of(drawn, counts))


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

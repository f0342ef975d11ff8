"""How far two sets of features are apart: kernel distances, and precision, recall and their kin.

Pictures of one set are compared with all of the other, in blocks, so that memory is bounded. Each
figure comes as the contributions of single pictures: their mean is the figure, and how they scatter
gives its interval.

N drawn pictures, M reference pictures, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from opensana.errors import DataError

BLOCK = 2048
NEAREST = 5
CMMD_DEVIATION, CMMD_SCALE = 10.0, 1000.0
Kernel = Callable[[Tensor, Tensor], Tensor]
Array = np.ndarray
"""float32 [N, D], perhaps memory-mapped."""


def kid(drawn: Array, reference: Array) -> tuple[float, Array]:
    """The kernel distance of Binkowski et al. 2018 over all pairs, and what each picture adds.

    The kernel is (x.y / D + 1)^3; the estimate is unbiased and may be below 0. Others average over
    random subsets of 1000, which scatters around the same number.
    """
    width = drawn.shape[1]
    _at_least_two(drawn, reference)
    return _mmd(drawn, reference, lambda x, y: (x @ y.T / width + 1) ** 3, unbiased=True)


def cmmd(drawn: Array, reference: Array) -> tuple[float, Array]:
    """CMMD (Jayasumana et al. 2024) of unit CLIP embeddings: 1000 times a Gaussian MMD, biased."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp((x @ y.T - 1) / CMMD_DEVIATION**2)  # |x - y|^2 = 2 - 2 x.y

    value, influence = _mmd(drawn, reference, kernel, unbiased=False)
    return CMMD_SCALE * value, CMMD_SCALE * influence


def _mmd(drawn: Array, reference: Array, kernel: Kernel, *, unbiased: bool) -> tuple[float, Array]:
    """The squared distance of means, and 2 (mean k(x, X) - mean k(x, Y)) for each drawn x."""
    own, across = _row_sums(drawn, drawn, kernel), _row_sums(drawn, reference, kernel)
    others = _row_sums(reference, reference, kernel)
    count, total = len(drawn), len(reference)
    same, pairs, other_pairs = own, count * count, total * total
    if unbiased:
        same, others = own - _diagonal(drawn, kernel), others - _diagonal(reference, kernel)
        pairs, other_pairs = count * (count - 1), total * (total - 1)
    value = same.sum() / pairs + others.sum() / other_pairs
    value -= 2 * across.sum() / (count * total)
    return float(value), 2 * (same * count / pairs - across / total)


def _row_sums(rows: Array, columns: Array, kernel: Kernel) -> Array:
    sums = np.zeros(len(rows))
    for start in range(0, len(rows), BLOCK):
        block = _double(rows[start : start + BLOCK])
        for other in range(0, len(columns), BLOCK):
            part = kernel(block, _double(columns[other : other + BLOCK])).sum(1)
            sums[start : start + len(block)] += part.numpy()
    return sums


def _diagonal(rows: Array, kernel: Kernel) -> Array:
    return np.concatenate(
        [
            torch.stack([kernel(x[None], x[None])[0, 0] for x in _double(rows[i : i + BLOCK])])
            for i in range(0, len(rows), BLOCK)
        ]
    )


def _double(rows: Array) -> Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float64))


@dataclass(frozen=True)
class Overlap:
    """Contributions whose means are the figures: of drawn pictures [N] or reference ones [M].

    Precision and recall are those of Kynkaanniemi et al. 2019, density and coverage those of Naeem
    et al. 2020, with balls up to the fifth nearest neighbour.
    """

    precision: Array
    recall: Array
    density: Array
    coverage: Array


def overlap(drawn: Array, reference: Array, *, nearest: int = NEAREST) -> Overlap:
    """How the two sets cover each other; each needs more pictures than `nearest`."""
    for name, rows in (("drawn", drawn), ("reference", reference)):
        if len(rows) <= nearest:
            raise DataError(
                f"precision and recall need more than {nearest} {name} pictures, got {len(rows)}"
            )
    real_radius, drawn_radius = _radii(reference, nearest), _radii(drawn, nearest)
    count, total = len(drawn), len(reference)
    inside, closest = np.zeros(count), np.full(total, np.inf)
    recalled = np.zeros(total, dtype=bool)
    for start in range(0, count, BLOCK):
        block = _double(drawn[start : start + BLOCK])
        rows = slice(start, start + len(block))
        for other in range(0, total, BLOCK):
            distances = torch.cdist(block, _double(reference[other : other + BLOCK])).numpy()
            columns = slice(other, other + distances.shape[1])
            inside[rows] += (distances < real_radius[columns]).sum(1)
            recalled[columns] |= (distances < drawn_radius[rows, None]).any(0)
            closest[columns] = np.minimum(closest[columns], distances.min(0))
    return Overlap(
        precision=(inside > 0).astype(float),
        recall=recalled.astype(float),
        density=inside / nearest,
        coverage=(closest < real_radius).astype(float),
    )


def _radii(rows: Array, nearest: int) -> Array:
    """The distance of each row to its neighbour of that rank, itself not counted."""
    found = []
    for start in range(0, len(rows), BLOCK):
        block = _double(rows[start : start + BLOCK])
        best = torch.empty(len(block), 0, dtype=torch.float64)
        for other in range(0, len(rows), BLOCK):
            distances = torch.cdist(block, _double(rows[other : other + BLOCK]))
            own = torch.arange(len(block)) + start - other
            known = (own >= 0) & (own < distances.shape[1])
            distances[torch.nonzero(known)[:, 0], own[known]] = torch.inf
            best = torch.cat([best, distances], 1)
            best = best.topk(min(nearest, best.shape[1]), largest=False).values
        found.append(best.max(1).values.numpy())
    return np.concatenate(found)


def _at_least_two(*sets: Array) -> None:
    if min(map(len, sets)) < 2:
        raise DataError("a kernel distance needs 2 pictures or more in each set")

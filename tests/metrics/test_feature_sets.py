"""Kernel distances, precision and recall, against their definitions written out."""

import numpy as np
import pytest

from opensana.errors import DataError
from opensana.metrics import feature_sets
from opensana.metrics.feature_sets import cmmd, kid, overlap


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sets, "BLOCK", 7)


def sets(count: int = 20, total: int = 17, width: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(count, width)) + 1.0
    return drawn.astype(np.float32), generator.normal(size=(total, width)).astype(np.float32)


def test_kid_is_the_unbiased_estimate() -> None:
    drawn, real = (x.astype(float) for x in sets())
    n, m = len(drawn), len(real)
    own, others, across = (
        (a @ b.T / 3 + 1) ** 3 for a, b in ((drawn, drawn), (real, real), (drawn, real))
    )
    expected = (own.sum() - np.trace(own)) / n / (n - 1)
    expected += (others.sum() - np.trace(others)) / m / (m - 1) - 2 * across.mean()
    value, influence = kid(*sets())
    assert value == pytest.approx(expected, rel=1e-6)
    parts = 2 * ((own.sum(1) - np.diag(own)) / (n - 1) - across.mean(1))
    assert influence == pytest.approx(parts, rel=1e-5)


def test_cmmd_is_a_thousand_times_the_biased_gaussian_distance() -> None:
    drawn, real = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in sets())

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10**2))

    expected = kernel(drawn, drawn).mean() + kernel(real, real).mean()
    expected = 1000 * (expected - 2 * kernel(drawn, real).mean())
    assert cmmd(drawn, real)[0] == pytest.approx(expected, rel=1e-4)
    assert cmmd(real, real)[0] == pytest.approx(0, abs=1e-9)


def test_overlap_follows_its_definitions() -> None:
    drawn, real = (x.astype(float) for x in sets())
    apart = np.linalg.norm(drawn[:, None] - real[None], axis=2)

    def radii(rows: np.ndarray) -> np.ndarray:
        return np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), axis=1)[:, 3]

    found = overlap(*sets(), nearest=3)
    inside = apart < radii(real)[None]
    assert found.precision.tolist() == inside.any(1).astype(float).tolist()
    assert found.recall.tolist() == (apart < radii(drawn)[:, None]).any(0).astype(float).tolist()
    assert found.density == pytest.approx(inside.sum(1) / 3)
    assert found.coverage.tolist() == (apart.min(0) < radii(real)).astype(float).tolist()
    assert 0 < found.precision.mean() < 1, "the case tells right from wrong"


def test_equal_sets_overlap() -> None:
    drawn, _ = sets()
    found = overlap(drawn, drawn)
    assert found.precision.mean() == found.recall.mean() == found.coverage.mean() == 1


def test_few_pictures_are_refused() -> None:
    drawn, real = sets()
    with pytest.raises(DataError, match="more than 5 drawn pictures, got 4"):
        overlap(drawn[:4], real)
    with pytest.raises(DataError, match="2 pictures or more"):
        kid(drawn[:1], real)

"""Figures with intervals, and files of statistics.

Also tests `evaluate/benchmark/statistics.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opensana.errors import DataError
from opensana.evaluate.benchmark.figures import (
    frechet_figure,
    mean_figure,
    rows_by_category,
    set_figures,
)
from opensana.evaluate.benchmark.statistics import moments_of, read_statistics, write_statistics
from opensana.metrics.frechet import Gaussian, frechet_distance


def normal(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, 4)) + shift
    return values.astype(np.float32)


def test_equal_sets_have_distance_zero() -> None:
    features = normal(50, 0)
    found = frechet_figure(features, features, "sana")
    assert found.value == pytest.approx(0, abs=1e-9) and found.low is None


def test_few_pictures_have_the_distance_and_interval_of_their_statistics() -> None:
    generator = np.random.default_rng(3)
    drawn, real = (generator.normal(size=(n, 40)).astype(np.float32) for n in (12, 20))
    moments = moments_of(real)
    found = frechet_figure(drawn, real, "sana", replicates=5)
    known = frechet_figure(drawn, Gaussian(moments.mean, moments.covariance), "sana", replicates=5)
    assert (found.value, found.low) == pytest.approx((known.value, known.low), rel=1e-6)


def test_the_interval_of_fid_covers() -> None:
    """Of 60 sets from one model, nearly all intervals hold the mean of all their figures."""
    reference = normal(4000, 1000)
    found = [
        frechet_figure(normal(150, seed, 0.5), reference, "sana", replicates=30)
        for seed in range(60)
    ]
    mean = np.mean([figure.value for figure in found])
    held = sum(f.low <= mean <= f.high for f in found if f.low is not None and f.high is not None)
    assert held >= 52
    widths = [f.high - f.low for f in found if f.low is not None and f.high is not None]
    spread = np.std([figure.value for figure in found])
    assert 0.6 < np.mean(widths) / (2 * 1.96 * spread) < 1.6


def test_the_interval_of_kid_covers() -> None:
    reference = normal(300, 1000)
    found = [
        set_figures(normal(60, seed, 0.5), reference, "sana", overlaps=False)["kid"]
        for seed in range(60)
    ]
    mean = np.mean([figure.value for figure in found])
    held = sum(f.low <= mean <= f.high for f in found if f.low is not None and f.high is not None)
    assert held >= 50


def test_a_mean_has_the_interval_of_its_parts() -> None:
    found = mean_figure(np.array([1.0, 2.0, 3.0, 4.0]), "clip")
    reach = 1.96 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - reach, 2.5 + reach))


def test_few_pictures_have_no_overlap() -> None:
    assert set(set_figures(normal(5, 0), normal(20, 1), "sana")) == {"kid"}
    assert "coverage" in set_figures(normal(6, 0), normal(20, 1), "sana")


def test_resampling_equals_repeating_rows() -> None:
    features, counts = normal(4, 0), np.array([2, 0, 1, 1])
    repeated = moments_of(features[[0, 0, 2, 3]])
    weighted = moments_of(features, counts)
    assert weighted.covariance.numpy() == pytest.approx(repeated.covariance.numpy())


def test_categories() -> None:
    assert rows_by_category(["b", "a", "b"]) == {"a": [1], "b": [0, 2]}
    assert rows_by_category(["a", "a"]) == {}


def test_statistics_are_read_and_written(tmp_path: Path) -> None:
    features, other = normal(50, 0), moments_of(normal(40, 1))
    write_statistics(tmp_path / "s.npz", moments_of(features))
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["mu"] == pytest.approx(features.mean(0), rel=1e-5, abs=1e-6)
        assert file["sigma"] == pytest.approx(np.cov(features, rowvar=False), rel=1e-4, abs=1e-6)
    read = read_statistics(tmp_path / "s.npz")
    assert frechet_distance(read, other) == pytest.approx(
        frechet_distance(moments_of(features), other), rel=1e-9
    )


def test_other_statistics_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mu": np.zeros(3)}, "lacks mu or sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"expected \[D\] and \[D, D\]"),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "NaN"),
        ({"mu": np.array([{}]), "sigma": np.zeros((1, 1))}, "cannot be read"),
    ]
    for arrays, message in cases:
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            read_statistics(path)
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read"):
        read_statistics(path)

"""A measuring process that is killed and started again, by `benchmarks/many_pictures.py`."""

from pathlib import Path

import pytest

from benchmarks.many_pictures import compare


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_figures(tmp_path: Path) -> None:
    found = compare(tmp_path, 600, "small")
    first, second = found["kept_when_killed"]
    assert 200 <= first < 600 and 400 <= second < 600, "it was killed amidst"
    assert found["figures"]["fid"] > 0
    assert found["figures"].keys() == {"fid", "kid", "precision", "recall", "density", "coverage"}

"""docs/scale.md holds the tables that the recipes give today."""

from pathlib import Path

import pytest

from benchmarks import scale

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


def test_the_page_shows_todays_tables(capsys: pytest.CaptureFixture[str]) -> None:
    scale.main()
    *tables, _ = capsys.readouterr().out.splitlines()
    page = PAGE.read_text().splitlines()
    assert len(tables) > 20
    assert not [line for line in tables if line not in page]


def test_a_gpu_day_is_forty_percent_of_the_peak() -> None:
    assert scale.gpu_days(0.4 * 312e12 * 86_400, "A100") == pytest.approx(1)


def test_bytes_of_the_cache() -> None:
    assert scale.latent_bytes(512) == 32 * 16 * 16 * 2
    assert scale.text_bytes() == 120 * 2304 * 2


def test_reading_is_arithmetic_and_writing_is_bandwidth() -> None:
    seconds = scale.labelling("A100")["InternVL2-26B"]
    reading = 2 * 26e9 * 1000 / (0.4 * 312e12)
    writing = 120 * 2 * 26e9 / 2.039e12 / 32
    assert seconds == pytest.approx(reading + writing)

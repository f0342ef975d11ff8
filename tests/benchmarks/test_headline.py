"""From seconds of blocks to the table: multiplied, derived, and printed beside the paper's."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import headline
from benchmarks.headline import Kept, derived, draw, ratios, seconds_of, table
from benchmarks.headline_parts import ATTENTIONS, PARTS
from opensana.evaluate.cost.catalogue import PAINTERS

SIZES = ("512", "1024", "2048")


def kept() -> Kept:
    """Every block takes a second, every decoder ten; no block of a peer is known at 4096."""
    wall: dict[str, dict[str, list[float]]] = {
        name: {size: [1.0, 1.0, 9.0] for size in SIZES} for name in PARTS
    }
    for name in ("sana-0.6b.block", "sana-1.6b.block"):
        wall[name]["4096"] = [4.0]
    wall |= {f"{kind}.decoder": {"512": [10.0]} for kind in ("ours", "peer")}
    attention = {name: {"2048": [0.01], "4096": [0.16]} for name in ATTENTIONS}
    return {"wall": wall, "processor": attention}


def test_a_picture_is_blocks_times_steps_and_its_decoding() -> None:
    assert seconds_of(kept(), "flux-dev", 512) == 50 * (19 + 38) + 10
    assert seconds_of(kept(), "sana-0.6b", 512) == 20 * 2 * 28 + 10
    grown = PAINTERS["sana-1.6b"].decode(1024).macs / PAINTERS["sana-1.6b"].decode(512).macs
    assert seconds_of(kept(), "sana-1.6b", 1024) == pytest.approx(20 * 2 * 20 + 10 * grown)


def test_a_block_follows_from_half_the_size() -> None:
    """12 pairs of heads take 0.12 s of a second; the rest grows with the tokens."""
    growth = (65_536 + 512) / (16_384 + 512)
    expected = 0.88 * growth + 12 * 0.16
    assert derived(kept(), "flux-dev.double", 4096) == pytest.approx(expected)
    assert derived(kept(), "sana-0.6b.block", 4096) is None
    assert derived(kept(), "flux-dev.double", 2048) is None, "no attention at 1024"


def test_a_missing_part_leaves_its_rows_out() -> None:
    without = kept()
    del without["wall"]["flux-dev.single"]
    assert {row["peer"] for row in ratios(without)} == {"sd3-medium", "pixart-sigma"}
    del without["wall"]["ours.decoder"]
    assert not list(ratios(without))


def test_the_table_has_the_papers_figures() -> None:
    rows = {(row["size"], row["peer"], row["ours"]): row for row in ratios(kept())}
    assert len(rows) == 4 * 3 * 2
    row = rows[1024, "flux-dev", "sana-0.6b"]
    assert row["arithmetic"] == pytest.approx(70.1, abs=0.1)
    assert (row["printed_latency"], row["printed_throughput"]) == (25.6, 42.5)
    assert "printed_latency" not in rows[512, "flux-dev", "sana-0.6b"]
    lines = list(table([*rows.values()]))
    assert any("173.4, corrected 64.3" in line for line in lines)


def test_the_plot(tmp_path: Path) -> None:
    draw(list(ratios(kept())), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size == (960, 540)


def test_figures_of_another_machine_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text(json.dumps({"machine": {"cpu": "abacus"}, "seconds": {}}))
    with pytest.raises(SystemExit, match=r"was measured on .*abacus"):
        headline.opened(path)

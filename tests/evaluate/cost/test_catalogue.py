"""The counted table against published counts. Also tests `evaluate/cost/report.py`."""

import time

import pytest

from opensana.errors import RequestError
from opensana.evaluate.cost.catalogue import PAINTERS, check_sizes, painters
from opensana.evaluate.cost.convolutional import KlDecoder
from opensana.evaluate.cost.report import figures, tables

SIZES = (512, 1024, 2048, 4096)
# Counted with FlopCounterMode on the classes of diffusers 0.42, on the meta device: parameters in
# billions, 10^12 MACs of one forward pass, of one picture.
COUNTED = {
    "flux-dev": (11.901, (10.75, 37.19, 209.1, 1954), (539, 1865, 10_477, 97_855)),
    "flux-schnell": (11.891, (8.84, 34.73, 204.4, 1941), (36.6, 144, 842, 7_912)),
    "sd3-medium": (2.028, (1.054, 4.452, 31.96, 364.7), (60.3, 254, 1_814, 20_573)),
    "pixart-alpha": (0.611, (0.618, 3.255, 25.98, 311.7), (26.0, 135, 1_063, 12_617)),
    "pixart-sigma": (0.611, (0.644, 3.317, 26.18, 312.5), (27.0, 138, 1_072, 12_649)),
    "hunyuan-dit": (1.517, (1.477, 7.183, 51.27, 567.8), (149, 724, 5_151, 56_927)),
    "lumina-next": (1.755, (1.660, 7.988, 54.17, 572.9), (101, 485, 3_275, 34_523)),
    "sdxl": (2.567, (0.794, 3.381, 17.95, 143.9), (80.7, 343, 1_820, 14_539)),
    "sana-0.6b": (0.592, (0.158, 0.561, 2.172, 8.619), (7.4, 26.6, 103.6, 411.7)),
    "sana-1.6b": (1.604, (0.418, 1.483, 5.743, 22.78), (17.8, 63.5, 246.5, 978)),
    "sana-1.5-4.8b": (4.722, (1.249, 4.443, 17.22, 68.34), (51.0, 182, 706, 2_801)),
    "sprint-0.6b": (0.592, (0.158, 0.561, 2.172, 8.619), (1.4, 5.3, 21.1, 84.2)),
    "sprint-1.6b": (1.604, (0.418, 1.483, 5.743, 22.78), (1.9, 7.2, 28.2, 112.5)),
}


def about(*values: float) -> object:
    """To 1 %, or to half of the last digit where few are printed."""
    return pytest.approx(values, rel=0.01, abs=0.05 if max(values) > 1 else 0)


@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_of_the_published_shapes(name: str) -> None:
    parameters, forward, picture = COUNTED[name]
    painter = PAINTERS[name]
    assert painter.forward(512).parameters / 1e9 == pytest.approx(parameters, rel=0.01)
    assert [painter.forward(s).macs / 1e12 for s in SIZES] == pytest.approx(forward, rel=0.01)
    assert tuple(painter.picture(s).macs / 1e12 for s in SIZES) == about(*picture)


def test_decoders_are_counted() -> None:
    assert KlDecoder().decode(512).parameters / 1e9 == pytest.approx(0.0495, rel=0.01)
    kl = [KlDecoder().decode(size).macs / 1e12 for size in SIZES]
    assert kl == pytest.approx([1.257, 5.235, 24.24, 149.7], rel=0.01)
    ours = [PAINTERS["sana-0.6b"].decode(size).macs / 1e12 for size in SIZES]
    assert ours == pytest.approx([1.046, 4.184, 16.74, 66.95], rel=0.01)


def test_the_whole_table_takes_seconds() -> None:
    begun = time.process_time()
    found = figures(painters("all"), SIZES)
    assert time.process_time() - begun < 10
    assert len(found["models"]) == len(PAINTERS)
    flux = found["models"]["flux-dev"]["sizes"][4096]
    sana = found["models"]["sana-0.6b"]["sizes"][4096]
    assert flux["picture"]["macs"] / sana["picture"]["macs"] == pytest.approx(238, rel=0.01)
    assert sana["picture"]["operations"] == 2 * sana["picture"]["macs"]
    titles = [title for title, _ in tables(found)]
    assert len(titles) == 3 and "GB" in titles[2]


def test_steps_multiply_the_forward_pass_alone() -> None:
    painter = PAINTERS["sana-0.6b"]
    one, decode = painter.forward(512).macs, painter.decode(512).macs
    assert painter.picture(512, steps=3).macs == 6 * one + decode


def test_names_choose_models() -> None:
    assert set(painters("all")) == set(PAINTERS)
    ours, peers = painters("ours"), painters("peers")
    assert "sana-1.6b" in ours and "sdxl" in peers and not set(ours) & set(peers)
    assert list(painters("sdxl, sana-0.6b")) == ["sdxl", "sana-0.6b"]


def test_a_model_of_ours_is_drawn_with_as_its_index_says() -> None:
    painter = painters("emoji-256")["emoji-256"]
    assert (painter.steps, painter.passes) == (4, 1)
    name = "Efficient-Large-Model/Sana_Sprint_0.6B_1024px_diffusers"
    published = painters(name)[name]
    assert (published.steps, published.passes) == (2, 1)
    assert published.forward(512).macs == PAINTERS["sprint-0.6b"].forward(512).macs


@pytest.mark.parametrize("names", ["flux", "", ",", "no/such", "./no/such/folder"])
def test_other_names_are_refused(names: str) -> None:
    with pytest.raises(RequestError, match="there are all, ours, peers, flux-dev"):
        painters(names)


@pytest.mark.parametrize("sizes", ["", "0", "100", "512,", "x", "-32", "16416", "५१२"])
def test_other_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(RequestError, match="multiples of 32"):
        check_sizes(sizes)


def test_sizes_are_read() -> None:
    assert check_sizes("512, 1024,512") == [512, 1024]

"""Contact sheets: names below pictures, and none over its neighbour's."""

import numpy as np
import pytest
from PIL import Image

from opensana.pictures.sheet import contact_sheet

SIDE, MARGIN = 176, 8
LONG = "one brown snowman against a white background"


def inked(name: str) -> np.ndarray:
    """Whether there is ink below the picture at the left of a sheet of two, [rows, columns]."""
    pictures = [Image.new("RGB", (8, 8), "white")] * 2
    sheet = np.asarray(contact_sheet(pictures, [name, ""], columns=2, side=SIDE).convert("L"))
    return sheet[MARGIN + SIDE :] < 128


@pytest.mark.parametrize("name", ["a dog", LONG])
def test_a_name_stays_below_its_picture(name: str) -> None:
    ink = inked(name)
    assert ink[:, MARGIN : MARGIN + SIDE].any()
    assert not ink[:, :MARGIN].any()
    assert not ink[:, MARGIN + SIDE :].any()
    assert not ink[-MARGIN // 2 :].any()  # the next row begins below


def test_a_long_name_has_two_lines() -> None:
    def lines(name: str) -> int:
        rows = np.asarray(inked(name).any(axis=1))
        return int((rows[1:] & ~rows[:-1]).sum() + rows[0])

    assert lines("azure") == 1
    assert lines("one brown snowman on a white rug or snow") == 2

import numpy as np

from opensana.datasets.emoji.lab import from_lab, to_lab


def test_lab_and_back() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (500, 3)).astype(np.uint8)
    np.testing.assert_array_equal(from_lab(to_lab(colours.astype(np.float64))), colours)


def test_white_and_grey_have_no_hue() -> None:
    lab = to_lab(np.array([[255, 255, 255], [119, 119, 119], [0, 0, 0]]))
    np.testing.assert_allclose(lab[:, 1:], 0, atol=0.01)
    np.testing.assert_allclose(lab[:, 0], [100, 50.03, 0], atol=0.05)

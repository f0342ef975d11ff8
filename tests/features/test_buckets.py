"""The published table, the rule behind it, and the pixels that reach a bucket."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opensana.errors import ConfigError
from opensana.features.buckets import Bucket, buckets, crop_and_resize, nearest

TABLE_1024 = """
0.25:512x2048 0.26:512x1984 0.27:512x1920 0.28:512x1856 0.32:576x1792 0.33:576x1728 0.35:576x1664
0.4:640x1600 0.42:640x1536 0.48:704x1472 0.5:704x1408 0.52:704x1344 0.57:768x1344 0.6:768x1280
0.68:832x1216 0.72:832x1152 0.78:896x1152 0.82:896x1088 0.88:960x1088 0.94:960x1024 1.0:1024x1024
1.07:1024x960 1.13:1088x960 1.21:1088x896 1.29:1152x896 1.38:1152x832 1.46:1216x832 1.67:1280x768
1.75:1344x768 2.0:1408x704 2.09:1472x704 2.4:1536x640 2.5:1600x640 2.89:1664x576 3.0:1728x576
3.11:1792x576 3.62:1856x512 3.75:1920x512 3.88:1984x512 4.0:2048x512
"""


@pytest.mark.parametrize("base", [512, 1024, 2048, 4096])
def test_the_published_tables(base: int):
    entries = [entry.partition(":") for entry in TABLE_1024.split()]
    sizes = [(float(key), *map(int, size.split("x"))) for key, _, size in entries]
    wanted = [(key, h * base // 1024, w * base // 1024) for key, h, w in sizes]
    assert len(wanted) == 40
    assert [(bucket.key, bucket.height, bucket.width) for bucket in buckets(base)] == wanted


@pytest.mark.parametrize(("base", "unit"), [(64, 32), (256, 32), (384, 32), (512, 64), (800, 16)])
def test_other_sizes_follow_the_rule(base: int, unit: int):
    sizes = buckets(base, unit)
    assert Bucket(base, base) in sizes
    for bucket in sizes:
        assert bucket.height % unit == 0 == bucket.width % unit
        assert 0.9 <= bucket.height * bucket.width / base**2 <= 1
        assert 0.25 <= bucket.height / bucket.width <= 4
        assert Bucket(bucket.width, bucket.height) in sizes


@pytest.mark.parametrize(("base", "unit"), [(500, 32), (0, 32), (-32, 32), (32, 0)])
def test_sizes_off_the_grid_are_refused(base: int, unit: int):
    with pytest.raises(ConfigError, match=f"must be a multiple of {unit} pixels, got {base}"):
        buckets(base, unit)


def test_the_nearest_ratio():
    table = buckets(1024)
    assert nearest(table, 1024, 1024).key == 1.0
    assert nearest(table, 1920, 1080).key == 0.57
    assert nearest(table, 1080, 1920).key == 1.75
    assert nearest(table, 10_000, 1).key == 0.25
    assert nearest(table, 1, 10_000).key == 4.0
    assert nearest([Bucket(1, 2), Bucket(3, 2)], 1, 1) == Bucket(1, 2), "of two the wider"


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_the_covering_box_has_the_buckets_shape(width: int, height: int):
    for bucket in (Bucket(512, 2048), Bucket(960, 1088), Bucket(2048, 512)):
        left, top, right, bottom = bucket.covering_box(width, height)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (left, right) == (0, width) or (top, bottom) == (0, height)
        assert 0 <= (width - right) - left <= 1 and 0 <= (height - bottom) - top <= 1
        scale = max(bucket.height / height, bucket.width / width)
        assert right - left == pytest.approx(max(1, bucket.width / scale), abs=0.501)
        assert bottom - top == pytest.approx(max(1, bucket.height / scale), abs=0.501)


def test_fitting_is_resize_then_centre_crop():
    y, x = np.mgrid[:120, :90]  # smooth: Pillow's two passes round, and their order may differ
    waves = (np.sin(x / 9), np.cos(y / 7), np.sin((x + 2 * y) / 11))
    pixels = np.stack([128 + 90 * wave for wave in waves], axis=2).astype(np.uint8)
    resized = Image.fromarray(pixels).resize((60, 80), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((0, 20, 60, 60)))
    difference = np.abs(crop_and_resize(pixels, Bucket(40, 60)).astype(int) - expected)
    assert difference.max() <= 1 and difference.mean() < 0.05


def test_scaling_is_pillows_to_two_levels():
    pixels = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    for bucket in (Bucket(96, 128), Bucket(450, 600)):
        size = (bucket.width, bucket.height)
        expected = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        difference = np.abs(crop_and_resize(pixels, bucket).astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.02


def test_large_buckets_are_fitted_by_lanczos():
    pixels = np.random.default_rng(1).integers(0, 256, (1025, 2050, 3), np.uint8)
    resized = Image.fromarray(pixels).resize((4096, 2048), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(crop_and_resize(pixels, Bucket(2048, 4096)), np.asarray(resized))


def test_a_picture_of_the_size_is_left_alone():
    pixels = np.random.default_rng(1).integers(0, 256, (64, 32, 3), np.uint8)
    assert crop_and_resize(pixels, Bucket(64, 32)) is pixels


def test_a_thread_of_a_picture_takes_no_memory():
    pixels = np.zeros((1, 60_000, 3), np.uint8)  # enlarged as a whole it were 512 x 30,720,000
    assert crop_and_resize(pixels, Bucket(512, 2048)).shape == (512, 2048, 3)

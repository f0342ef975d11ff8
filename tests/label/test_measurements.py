from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from opensana.label.measurements import difference_hash, duplicate_groups, sharpness


def noise(seed: int, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """Smooth random shapes."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def test_sharpness_is_the_variance_of_a_convolution() -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 31), dtype=np.uint8)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
    padded = torch.nn.functional.pad(torch.tensor(values)[None].double(), (1,) * 4, "replicate")
    wanted = torch.nn.functional.conv2d(padded[None], kernel[None, None]).var(correction=0)
    assert sharpness(Image.fromarray(values)) == pytest.approx(float(wanted), rel=1e-12)


def test_blur_lowers_sharpness() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    blurred = image.filter(ImageFilter.GaussianBlur(2))
    assert sharpness(image) > 20 * sharpness(blurred) > 0
    assert sharpness(Image.new("RGB", (1, 1))) == 0


def distance(one: Image.Image, other: Image.Image) -> int:
    return (difference_hash(one) ^ difference_hash(other)).bit_count()


def test_hashes_of_the_same_picture_are_near_and_of_others_far() -> None:
    image = noise(0, (320, 240))
    small = image.resize((160, 120))
    bright = image.point(lambda value: value * 0.9)
    assert distance(image, small) <= 3 and distance(image, bright) <= 3
    others = [distance(noise(a), noise(b)) for a, b in combinations(range(12), 2)]
    assert min(others) > 12


def test_the_hash_compares_neighbours() -> None:
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == (1 << 64) - 1
    assert difference_hash(Image.fromarray(ramp[:, ::-1])) == 0
    ramp[0] = ramp[0, ::-1]
    assert difference_hash(Image.fromarray(ramp)) == (1 << 56) - 1


@pytest.mark.parametrize("near", [0, 2, 4])
def test_groups_are_those_of_all_pairs(near: int) -> None:
    draw = np.random.default_rng(near)
    hashes: dict[str, int] = {}
    for group in range(60):
        base = int(draw.integers(0, 1 << 63))
        for member in range(int(draw.integers(1, 4))):
            flips = draw.integers(0, 64, int(draw.integers(0, 4)))
            hashes[f"{group}-{member}"] = base ^ sum(1 << int(bit) for bit in set(flips.tolist()))
    links = {key: {key} for key in hashes}
    for one, other in combinations(hashes, 2):
        if (hashes[one] ^ hashes[other]).bit_count() <= near:
            merged = links[one] | links[other]
            for key in merged:
                links[key] = merged
    wanted = {frozenset(group) for group in links.values() if len(group) > 1}
    found = duplicate_groups(hashes, near=near)
    assert {frozenset(group) for group in found} == wanted
    assert [len(g) for g in found] == sorted((len(g) for g in found), reverse=True)
    assert duplicate_groups({}) == []

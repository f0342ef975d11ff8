"""Measurements of a picture: sharpness, and a perceptual hash to find near-duplicates."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from PIL import Image

HASH_BITS = 64
NEAR = 4
"""Largest Hamming distance between the hashes of near-duplicates."""


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture in 0..255; low if blurred."""
    grey = np.pad(np.asarray(image.convert("L"), dtype=np.float64), 1, mode="edge")
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((neighbours - 4 * grey[1:-1, 1:-1]).var())


def difference_hash(image: Image.Image) -> int:
    """dHash, 64 bits: whether each cell of a grey 8 x 9 thumbnail is brighter than its left one."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def duplicate_groups(hashes: Mapping[str, int], *, near: int = NEAR) -> list[list[str]]:
    """Groups of keys linked by Hamming distances of at most `near`, largest first (union-find)."""
    keys: defaultdict[int, list[str]] = defaultdict(list)
    for key, value in hashes.items():
        keys[value].append(key)
    values = np.array(list(keys), dtype=np.uint64)
    parent = list(range(len(values)))
    for first, second in _near_pairs(values, near):
        parent[_root(parent, first)] = _root(parent, second)
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for index, value in enumerate(keys):
        groups[_root(parent, index)] += keys[value]
    found = [sorted(group) for group in groups.values() if len(group) > 1]
    return sorted(found, key=lambda group: (-len(group), group))


def _near_pairs(values: np.ndarray, near: int) -> Iterator[tuple[int, int]]:
    """Pairs of indices with a Hamming distance of at most `near`.

    Of near + 1 bands of bits, such hashes agree in at least one: only those are compared.
    """
    edges = np.linspace(0, HASH_BITS, near + 2, dtype=int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        bands = (values >> np.uint64(low)) & mask
        order = np.argsort(bands, kind="stable")
        _, starts = np.unique(bands[order], return_index=True)
        for bucket in np.split(order, starts[1:]):
            for start, index in enumerate(bucket[:-1], start=1):
                others = bucket[start:]
                distances = np.bitwise_count(values[others] ^ values[index])
                for other in others[distances <= near]:
                    yield int(index), int(other)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index

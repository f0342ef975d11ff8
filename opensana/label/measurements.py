"""Measured facts of a picture: how sharp it is, and a hash that near-duplicates share."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
from PIL import Image

HASH_BITS = 64
NEAR = 4
"""Bits in which the hashes of near-duplicates may differ."""


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture in 0..255; blurred pictures have little."""
    grey = np.pad(np.asarray(image.convert("L"), dtype=np.float64), 1, mode="edge")
    neighbours = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((neighbours - 4 * grey[1:-1, 1:-1]).var())


def difference_hash(image: Image.Image) -> int:
    """64 bits: is each cell of a grey 8 x 9 miniature brighter than the one to its left?"""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def duplicate_groups(hashes: Mapping[str, int], *, near: int = NEAR) -> list[list[str]]:
    """Keys whose hashes are linked by steps of at most `near` bits, largest group first."""
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
    """Pairs of indices whose hashes differ in at most `near` bits.

    Cut into near + 1 bands, such hashes agree in one band: only those are compared.
    """
    edges = np.linspace(0, HASH_BITS, near + 2, dtype=int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        bands = (values >> np.uint64(low)) & mask
        order = np.argsort(bands, kind="stable")
        _, starts = np.unique(bands[order], return_index=True)
        for bucket in np.split(order, starts[1:]):
            yield from _pairs_in(values, bucket, near)


def _pairs_in(values: np.ndarray, bucket: np.ndarray, near: int) -> Iterator[tuple[int, int]]:
    for place, index in enumerate(bucket[:-1]):
        others = bucket[place + 1 :]
        distances = np.bitwise_count(values[others] ^ values[index])
        for other in others[distances <= near]:
            yield int(index), int(other)


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index

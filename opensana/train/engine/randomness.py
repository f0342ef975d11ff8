"""Counter-based randomness: every draw is a pure function of (seed, step, slot, purpose).

No generator state survives a step, so a resumed run needs none: it draws what the interrupted run
would have drawn. The sample order is a permutation of (seed, epoch).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch


def seed_of(*words: int | str) -> int:
    """A 63-bit seed from any words, the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def numpy_generator(*words: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed_of(*words)))


def torch_generator(*words: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*words))


@contextmanager
def drawn_by(*words: int | str) -> Iterator[None]:
    """What layers draw from torch's own generator when they are made, as a function of words."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*words))
        yield


@lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which one epoch visits `count` samples."""
    return numpy_generator(seed, epoch, "order").permutation(count)


def samples_of_step(step: int, *, batch: int, count: int, seed: int) -> list[tuple[int, int]]:
    """(epoch, sample) of every slot of a step: each sample exactly once in each epoch."""
    first = step * batch
    positions = (divmod(position, count) for position in range(first, first + batch))
    return [(epoch, int(epoch_order(count, seed, epoch)[index])) for epoch, index in positions]

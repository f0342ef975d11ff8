"""T3, T4: batches of one bucket; every sample once an epoch; the step is all that is remembered.

Also tests `train/transformer/order.py`.
"""

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from opensana.errors import ConfigError
from opensana.train.transformer.order import BucketOrder

BUCKETS = np.repeat([0, 1, 2, 4], [50, 23, 3, 1])[np.random.default_rng(0).permutation(77)]


def order(batch: int = 8, seed: int = 1, buckets: np.ndarray = BUCKETS) -> BucketOrder:
    return BucketOrder(buckets, batch=batch, seed=seed)


@pytest.mark.parametrize("batch", [1, 4, 8, 100])
def test_a_batch_is_whole_and_of_one_bucket(batch: int):
    batches = order(batch)
    for step in range(40):
        visits = batches(step)
        assert len(visits) == batch
        assert len({BUCKETS[sample] for _, sample in visits}) == 1


@pytest.mark.parametrize("batch", [1, 4, 8, 100])
def test_every_sample_once_an_epoch(batch: int):
    batches, epochs = order(batch), 6 if batch < 100 else 120
    steps = next(step for step in range(10_000) if batches.epoch(step) >= epochs)
    visits = Counter(visit for step in range(steps) for visit in batches(step))
    assert max(visits.values()) == 1, "nothing comes twice"
    for bucket in np.unique(BUCKETS):
        members = np.flatnonzero(np.equal(BUCKETS, bucket))
        missing = {(e, int(m)) for e in range(epochs) for m in members} - set(visits)
        assert len(missing) < batch, "less than a batch of each bucket is still to come"
        newest = epochs - -(-batch // len(members))
        assert all(epoch >= newest for epoch, _ in missing)


def test_batch_one_leaves_nothing_over():
    batches = order(1)
    for epoch in range(3):
        visits = [batches(step)[0] for step in range(epoch * 77, (epoch + 1) * 77)]
        assert sorted(visits) == [(epoch, sample) for sample in range(77)]


def test_any_step_is_known_without_those_before_it():
    straight, jumping = order(), order()
    steps = [straight(step) for step in range(60)]
    for step in np.random.default_rng(1).permutation(60):
        assert jumping(int(step)) == steps[step]


def test_ranks_share_one_global_order():
    whole = order()
    for ranks in (2, 4):
        own = [order() for _ in range(ranks)]
        for step in range(20):
            slots = 8 // ranks
            parts = [o(step)[r * slots : (r + 1) * slots] for r, o in enumerate(own)]
            assert [visit for part in parts for visit in part] == whole(step)


def test_seeds_and_epochs_differ():
    first = [order(1)(step)[0][1] for step in range(77)]
    again = [order(1)(step)[0][1] for step in range(77, 154)]
    other = [order(1, seed=2)(step)[0][1] for step in range(77)]
    assert len({tuple(first), tuple(again), tuple(other)}) == 3


def test_buckets_are_mixed():
    batches = order(1)
    seen = [BUCKETS[batches(step)[0][1]] for step in range(77)]
    assert sum(a != b for a, b in pairwise(seen)) > 15


def test_resuming_far_in_a_large_set_is_quick():
    buckets = np.random.default_rng(0).integers(0, 40, 100_000)
    start = time.perf_counter()
    order(64, buckets=buckets)(1_000_003)
    assert time.perf_counter() - start < 5


def test_nothing_to_order_is_refused():
    with pytest.raises(ConfigError, match="no batches of 8 can be made of 0 samples"):
        order(buckets=np.zeros(0, np.int64))

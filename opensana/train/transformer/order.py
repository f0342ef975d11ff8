"""Which samples make a step, where each batch must be of one bucket.

Every bucket is a stream: its samples in a new order each epoch, cut into batches of equal size.
What is left at the end of an epoch is not dropped, and makes no smaller batch: it begins the
bucket's next batch, so that every step has as many samples as any other, on one process or on many.
An epoch has the batches that its samples complete, in random order over all buckets.

All of it is a function of (seed, step). The step is the whole state: nothing else is saved, and any
number of processes and workers sees the same order.
"""

from functools import lru_cache

import numpy as np

from opensana.errors import ConfigError
from opensana.train.engine.randomness import numpy_generator, seed_of


class BucketOrder:
    """Batches of one bucket each; `buckets` [M] is the bucket number of every sample."""

    def __init__(self, buckets: np.ndarray, *, batch: int, seed: int) -> None:
        if not len(buckets) or batch < 1:
            raise ConfigError(f"no batches of {batch} can be made of {len(buckets)} samples")
        self.batch, self.seed = batch, seed
        self.counts = np.bincount(buckets)
        self._members = np.split(np.argsort(buckets, kind="stable"), np.cumsum(self.counts)[:-1])
        self._orders: dict[int, tuple[int, np.ndarray]] = {}
        self._schedule = lru_cache(maxsize=2)(self._make_schedule)

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """(epoch, sample) of every slot of a step; no pair ever comes twice."""
        epochs, samples = self.visits(step)
        return list(zip(epochs.tolist(), samples.tolist(), strict=True))

    def visits(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The same as two arrays [B]: epochs, which ascend, and samples."""
        epoch = self.epoch(step)
        bucket, number = map(int, self._schedule(epoch)[step - self._before(epoch)])
        places = number * self.batch + np.arange(self.batch)
        epochs, places = np.divmod(places, self.counts[bucket])
        of_epochs = [
            self._order(bucket, int(each))[places[epochs == each]] for each in np.unique(epochs)
        ]
        return epochs, self._members[bucket][np.concatenate(of_epochs)]

    def epoch(self, step: int) -> int:
        """The epoch whose samples complete the batch of a step."""
        epoch = step * self.batch // int(self.counts.sum())
        while self._before(epoch + 1) <= step:
            epoch += 1
        return epoch

    def _before(self, epoch: int) -> int:
        """How many batches are complete before an epoch."""
        return int((epoch * self.counts // self.batch).sum())

    def _make_schedule(self, epoch: int) -> np.ndarray:
        """(bucket, number of its batch) of every step of an epoch [S, 2]."""
        first, last = (e * self.counts // self.batch for e in (epoch, epoch + 1))
        pairs = [
            (bucket, index)
            for bucket in range(len(self.counts))
            for index in range(first[bucket], last[bucket])
        ]
        order = numpy_generator(self.seed, epoch, "batches").permutation(len(pairs))
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)[order]

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        known, order = self._orders.get(bucket, (-1, np.empty(0)))
        if known != epoch:
            generator = numpy_generator(seed_of(self.seed, bucket), epoch, "order")
            order = generator.permutation(int(self.counts[bucket]))
            self._orders[bucket] = (epoch, order)
        return order

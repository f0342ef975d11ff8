"""Pictures of any source, cut to centred squares of one size.

B batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from opensana.datasets.crops import PictureSource
from opensana.errors import DataError, RequestError
from opensana.evaluate.folder import spread


@dataclass(frozen=True)
class Sample:
    """Some pictures of a source, at one size."""

    source: PictureSource
    indices: list[int]
    size: int
    batch: int

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [B, size, size, 3] each."""
        for start in range(0, len(self), self.batch):
            yield self.read(range(start, min(start + self.batch, len(self))))

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 [B, size, size, 3] of these numbers in the sample."""
        return np.stack([self.source.square(self.indices[row], self.size) for row in rows])

    def name(self, row: int) -> str:
        return self.source.name(self.indices[row])


def choose(source: PictureSource, limit: int, *, size: int, batch: int) -> Sample:
    """At most `limit` pictures, evenly spaced."""
    if min(batch, limit) < 1:
        raise RequestError(f"batch and limit must be 1 or more, got {batch} and {limit}")
    if not len(source):
        raise DataError("there are no pictures in this split; try --split train")
    return Sample(source, spread(len(source), limit), size, batch)

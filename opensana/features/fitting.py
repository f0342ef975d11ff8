"""Pictures of a source in its own order, decoded and brought to their buckets by threads.

The source is read by the calling thread alone, for it may be a file with a position.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from opensana.datasets.record import Caption, Record, Reject, Source
from opensana.errors import DataError
from opensana.features.buckets import Bucket, fit, nearest
from opensana.workers.threads import in_order

Decode = Callable[[bytes], np.ndarray]
"""An encoded picture to uint8 [H, W, 3]; DataError for one that is refused."""


@dataclass(frozen=True)
class Fitted:
    """A record, its captions that can be read, and its pixels, uint8 of the bucket's size."""

    record: Record
    captions: tuple[Caption, ...]
    bucket: Bucket
    pixels: np.ndarray


def fitted_pictures(
    source: Source,
    indices: Iterable[int],
    sizes: Sequence[Bucket],
    *,
    decode: Decode,
    workers: int,
) -> Iterator[Fitted | Reject]:
    """Each record with its picture, or why it cannot be used, in the order of `indices`."""

    def prepared(item: tuple[Record, bytes] | Reject) -> Fitted | Reject:
        return item if isinstance(item, Reject) else _fitted(*item, sizes, decode)

    return in_order(prepared, (_read(source, index) for index in indices), workers=workers)


def _read(source: Source, index: int) -> tuple[Record, bytes] | Reject:
    record = source.record(index)
    if not any(_readable(caption) for caption in record.captions):
        return Reject(record.key, "has no caption")
    try:
        return record, source.picture(index)
    except DataError as error:
        return Reject(record.key, str(error))


def _fitted(
    record: Record, picture: bytes, sizes: Sequence[Bucket], decode: Decode
) -> Fitted | Reject:
    try:
        pixels = decode(picture)
    except DataError as error:
        return Reject(record.key, str(error))
    bucket = nearest(sizes, pixels.shape[1], pixels.shape[0])
    captions = tuple(caption for caption in record.captions if _readable(caption))
    return Fitted(record, captions, bucket, fit(pixels, bucket))


def _readable(caption: Caption) -> bool:
    """Whether a tokenizer can read a caption: some text, and no half of a surrogate pair."""
    return bool(caption.text.strip()) and not any("\ud800" <= c <= "\udfff" for c in caption.text)

"""Decode a source's pictures and resize them to their buckets, in threads, in order.

Only the calling thread reads the source, which need not be thread-safe.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from opensana.datasets.record import Caption, Record, Reject, Source
from opensana.errors import DataError
from opensana.features.buckets import Bucket, crop_and_resize, nearest
from opensana.workers.threads import in_order

Decode = Callable[[bytes], np.ndarray]
"""An encoded picture to uint8 [H, W, 3]; DataError for one that is refused."""


@dataclass(frozen=True)
class Resized:
    """A record, its readable captions, and its pixels, uint8 of the bucket's size."""

    record: Record
    captions: tuple[Caption, ...]
    bucket: Bucket
    pixels: np.ndarray


def resized_pictures(
    source: Source,
    indices: Iterable[int],
    sizes: Sequence[Bucket],
    *,
    decode: Decode,
    workers: int,
) -> Iterator[Resized | Reject]:
    """Each record with its resized picture, or its rejection, in the order of `indices`."""

    def prepared(item: tuple[Record, bytes] | Reject) -> Resized | Reject:
        return item if isinstance(item, Reject) else _resized(*item, sizes, decode)

    return in_order(prepared, (_read(source, index) for index in indices), workers=workers)


def _read(source: Source, index: int) -> tuple[Record, bytes] | Reject:
    record = source.record(index)
    if not any(_readable(caption) for caption in record.captions):
        return Reject(record.key, "has no caption")
    try:
        return record, source.picture(index)
    except DataError as error:
        return Reject(record.key, str(error))


def _resized(
    record: Record, picture: bytes, sizes: Sequence[Bucket], decode: Decode
) -> Resized | Reject:
    try:
        pixels = decode(picture)
    except DataError as error:
        return Reject(record.key, str(error))
    bucket = nearest(sizes, pixels.shape[1], pixels.shape[0])
    captions = tuple(caption for caption in record.captions if _readable(caption))
    return Resized(record, captions, bucket, crop_and_resize(pixels, bucket))


def _readable(caption: Caption) -> bool:
    """Whether a tokenizer can read a caption: not blank, without lone surrogates."""
    return bool(caption.text.strip()) and not any("\ud800" <= c <= "\udfff" for c in caption.text)

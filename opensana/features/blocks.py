"""Encode a block of records to the pieces of a cache, here or on another machine.

N tokens, D hidden size, C channels, h w latent size.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opensana.datasets.record import Caption, Reject, Source
from opensana.device import free_memory
from opensana.errors import ConfigError, DataError
from opensana.features.buckets import Bucket, buckets
from opensana.features.encoders import Encoders
from opensana.features.fitting import Decode, Resized, resized_pictures
from opensana.features.texts import caption_digest

TEXT_BATCH = 32
FINGERPRINTS = 64
FREE_SHARE = 0.5  # of a GPU's memory: the text encoder takes some while it works
MOST_THREADS = 16


@dataclass(frozen=True)
class EncodeOptions:
    """`size` is the side of a square picture; `memory` in bytes; `max_bad` a share of the records.

    To stay within `memory`, batches shrink, and large pictures are encoded in bands of rows. What
    is None depends on the device (`settings_on`).
    """

    size: int
    batch: int | None = None
    memory: int | None = None
    max_bad: float = 0.01
    threads: int | None = None
    """Threads that decode pictures."""

    def __post_init__(self) -> None:
        for name in ("batch", "memory", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, got {value}")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad must be a share from 0 to 1, got {self.max_bad}")


@dataclass(frozen=True)
class Settings:
    """What a device is given to do at once."""

    batch: int
    memory: int
    threads: int


def settings_on(device: torch.device, options: EncodeOptions) -> Settings:
    """A CPU has few processors to spare; a GPU waits for pictures, and its free memory is known."""
    if device.type == "cpu":
        batch, memory, threads = 8, 4 << 30, 2
    else:
        batch, memory = 32, int(FREE_SHARE * free_memory(device))
        threads = max(2, min(MOST_THREADS, os.cpu_count() or 2))
    return Settings(options.batch or batch, options.memory or memory, options.threads or threads)


@dataclass(frozen=True)
class Identity:
    """The keys of a cache's latents and texts, and the hidden states [N, D] of the null caption.

    `made_by` says where to find the text encoder.
    """

    latent: dict[str, Any]
    text: dict[str, Any]
    null: np.ndarray
    made_by: dict[str, str]

    @property
    def keys(self) -> dict[str, Any]:
        return self.latent | self.text


@dataclass(frozen=True)
class States:
    """Captions and the hidden states [N, D] of each."""

    captions: Sequence[str]
    states: Sequence[np.ndarray]


@dataclass(frozen=True)
class Latent:
    """A picture's scaled latent [C, h, w] and its captions; their states were yielded before."""

    key: str
    captions: tuple[Caption, ...]
    values: np.ndarray


@dataclass(frozen=True)
class End:
    """All records before `index` are done."""

    index: int


Piece = Reject | States | Latent | End


class BlockEncoder:
    """Encodes blocks of a source."""

    def __init__(
        self, source: Source, encoders: Encoders, options: EncodeOptions, decode: Decode
    ) -> None:
        self.source, self.encoders, self.options, self.decode = source, encoders, options, decode
        self.settings = settings_on(encoders.autoencoder.device, options)
        self.sizes = buckets(options.size, encoders.autoencoder.compression)
        self.batches: dict[Bucket, int] = {}

    def identity(self) -> Identity:
        latent = self.encoders.latent_keys() | {
            "resolution": self.options.size,
            "source": fingerprint(self.source),
            "records": len(self.source),
        }
        encoders = self.encoders
        return Identity(latent, encoders.text_keys(), encoders.null(), encoders.made_by())

    def __call__(self, block: range, known: Container[bytes] = ()) -> Iterator[Piece]:
        """Rejects, then states of the captions not in `known`, then latents in the source's order.

        Held in memory are the block's latents and a batch of pixels per bucket.
        """
        described: list[Resized] = []
        latents: dict[int, np.ndarray] = {}
        waiting: dict[Bucket, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for item in resized_pictures(
            self.source, block, self.sizes, decode=self.decode, workers=self.settings.threads
        ):
            if isinstance(item, Reject):
                yield item
                continue
            waiting[item.bucket].append((len(described), item.pixels))
            described.append(item)
            if len(waiting[item.bucket]) >= self._batch(item.bucket):
                latents |= self._latents(item.bucket, waiting.pop(item.bucket))
        for bucket in list(waiting):
            latents |= self._latents(bucket, waiting.pop(bucket))
        texts = {caption.text for item in described for caption in item.captions}
        new = [text for text in texts if caption_digest(text) not in known]
        new.sort(key=lambda text: (len(text), text))  # batches of similar length
        for first in range(0, len(new), TEXT_BATCH):
            batch = new[first : first + TEXT_BATCH]
            yield States(batch, self.encoders.states(batch))
        for slot, item in enumerate(described):
            yield Latent(item.record.key, item.captions, latents[slot])
        yield End(block.stop)

    def _batch(self, bucket: Bucket) -> int:
        """The batch size of a bucket; 0 if even one picture must run in bands."""
        if bucket not in self.batches:
            self.batches[bucket] = self.encoders.at_once(
                bucket.height, bucket.width, most=self.settings.batch, memory=self.settings.memory
            )
        return self.batches[bucket]

    def _latents(
        self, bucket: Bucket, batch: Sequence[tuple[int, np.ndarray]]
    ) -> dict[int, np.ndarray]:
        slots, pixels = zip(*batch, strict=True)
        memory = None if self._batch(bucket) else self.settings.memory
        latents = self.encoders.latents(np.stack(pixels), memory=memory)
        return dict(zip(slots, latents, strict=True))


def fingerprint(source: Source) -> str:
    """SHA-256 over evenly spaced records; it changes with the data set and with the labels."""
    if not len(source):
        raise DataError("the data set has no records; name another folder or file")
    chosen = np.linspace(0, len(source) - 1, min(FINGERPRINTS, len(source))).astype(int)
    records = [source.record(int(index)) for index in chosen]
    described = [
        (r.key, r.width, r.height, [(c.text, c.captioner, c.score) for c in r.captions])
        for r in records
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()

"""The run over a source: block after block into a cache that grows.

A block of records is committed as a whole, so that the same command goes on where a killed one
stopped, and ends with the same bytes.
"""

import hashlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opensana.data.buckets import Bucket, buckets
from opensana.data.cache import read_manifest
from opensana.data.features import FeatureWriter, Sample
from opensana.data.growing import JOURNAL, GrowingFiles
from opensana.data.record import Reject, Source
from opensana.data.texts import TextWriter, caption_digest
from opensana.encode.encoders import Encoders
from opensana.encode.pictures import Decode, Fitted, fitted_pictures
from opensana.errors import ConfigError, DataError

BLOCK = 256
TEXT_BATCH = 32
FINGERPRINTS = 64
REPORT_SECONDS = 10.0
REJECTS = "rejects.jsonl"

Report = Callable[[str], None]


@dataclass(frozen=True)
class EncodeOptions:
    """`size` is the side of a square picture; `memory` in bytes; `max_bad` a share of the records.

    Where `memory` asks for it, batches are smaller and large pictures run in bands of rows.
    """

    size: int
    batch: int = 8
    memory: int = 4 << 30
    max_bad: float = 0.01
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("batch", "memory", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad must be a share from 0 to 1, got {self.max_bad}")


def encode(
    source: Source,
    to: Path,
    *,
    encoders: Encoders,
    options: EncodeOptions,
    decode: Decode,
    report: Report,
) -> int:
    """Write the cache `to`, or go on with it; returns the number of its samples.

    DataError if `to` or what was begun of it is from another source, model, size or version of this
    code, and if more than `max_bad` of the records cannot be used.
    """
    sizes = buckets(options.size, encoders.autoencoder.compression)
    text, latent = encoders.text_keys(), encoders.latent_keys()
    latent |= {"resolution": options.size, "source": fingerprint(source), "records": len(source)}
    if to.exists():
        return _complete(to, latent, text, report)
    partial = to.with_name(to.name + ".partial")
    with closing(GrowingFiles(partial)) as files:
        _check_same(partial, files.state.setdefault("keys", latent | text), latent | text)
        features = FeatureWriter(files, keys=latent)
        texts = TextWriter(files, keys=text, null=encoders.null(), prefix="text/")
        job = _Job(source, files, features, texts, encoders, options, sizes, decode)
        job.run(report)
        files.finish()
        texts.close()
        features.close()
        os.replace(partial, to)
        (to / JOURNAL).unlink()
    return len(features)


def fingerprint(source: Source) -> str:
    """SHA-256 over evenly spaced records: another set, or other labels, give another one."""
    if not len(source):
        raise DataError("the data set has no records; name another folder or file")
    places = np.linspace(0, len(source) - 1, min(FINGERPRINTS, len(source))).astype(int)
    records = [source.record(int(place)) for place in places]
    facts = [
        (r.key, r.width, r.height, [(c.text, c.captioner, c.score) for c in r.captions])
        for r in records
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class _Job:
    """One run over a source, from its first record that is not in the files yet."""

    def __init__(
        self,
        source: Source,
        files: GrowingFiles,
        features: FeatureWriter,
        texts: TextWriter,
        encoders: Encoders,
        options: EncodeOptions,
        sizes: Sequence[Bucket],
        decode: Decode,
    ) -> None:
        self.source, self.files, self.features, self.texts = source, files, features, texts
        self.encoders, self.options, self.sizes, self.decode = encoders, options, sizes, decode
        self.batches: dict[Bucket, int] = {}
        self.ids = texts.ids()

    def run(self, report: Report) -> None:
        state, count = self.files.state, len(self.source)
        if "done" not in state:
            state |= {"done": 0, "bad": 0}
            self._reject(self.source.rejects)
        before, start, said = state["done"], time.monotonic(), 0.0
        for first in range(before, count, BLOCK):
            end = min(first + BLOCK, count)
            self._block(range(first, end))
            state["done"] = end
            self.files.commit()
            self._check_rejects()
            seconds = time.monotonic() - start
            if seconds - said > REPORT_SECONDS or end == count:
                said, rate = seconds, (end - before) / seconds
                left = f", {(count - end) / rate:.0f} s left" if end < count else ""
                report(f"{end}/{count} records, {rate:.1f} samples/s{left}")

    def _block(self, indices: range) -> None:
        """Latents by bucket as batches fill up, then captions, then samples in the source's order.

        What is held are a block's latents and one batch of pixels for each bucket.
        """
        described: list[Fitted] = []
        latents: dict[int, np.ndarray] = {}
        waiting: dict[Bucket, list[tuple[int, np.ndarray]]] = defaultdict(list)
        for item in fitted_pictures(
            self.source, indices, self.sizes, decode=self.decode, workers=self.options.workers
        ):
            if isinstance(item, Reject):
                self._reject([item])
                continue
            waiting[item.bucket].append((len(described), item.pixels))
            described.append(item)
            if len(waiting[item.bucket]) >= self._batch(item.bucket):
                latents |= self._latents(item.bucket, waiting.pop(item.bucket))
        for bucket in list(waiting):
            latents |= self._latents(bucket, waiting.pop(bucket))
        self._add_captions(described)
        for place, item in enumerate(described):
            self.features.add(latents[place][None], [self._sample(item)])

    def _batch(self, bucket: Bucket) -> int:
        """How many pictures of a bucket run at once; 0 where one runs in bands."""
        if bucket not in self.batches:
            self.batches[bucket] = self.encoders.at_once(
                bucket.height, bucket.width, most=self.options.batch, memory=self.options.memory
            )
        return self.batches[bucket]

    def _latents(
        self, bucket: Bucket, batch: Sequence[tuple[int, np.ndarray]]
    ) -> dict[int, np.ndarray]:
        places, pixels = zip(*batch, strict=True)
        memory = None if self._batch(bucket) else self.options.memory
        latents = self.encoders.latents(np.stack(pixels), memory=memory)
        return dict(zip(places, latents, strict=True))

    def _add_captions(self, described: Sequence[Fitted]) -> None:
        """States of the captions that are new, those of about one length together."""
        texts = {caption.text for item in described for caption in item.captions}
        new = [text for text in texts if caption_digest(text) not in self.ids]
        new.sort(key=lambda text: (len(text), text))
        for first in range(0, len(new), TEXT_BATCH):
            batch = new[first : first + TEXT_BATCH]
            for text in batch:
                self.ids[caption_digest(text)] = len(self.ids)
            self.texts.add(batch, self.encoders.states(batch))

    def _sample(self, item: Fitted) -> Sample:
        return Sample(
            key=item.record.key,
            captions=tuple(self.ids[caption_digest(caption.text)] for caption in item.captions),
            scores=tuple(caption.score for caption in item.captions),
            captioners=tuple(caption.captioner for caption in item.captions),
        )

    def _reject(self, rejects: Sequence[Reject]) -> None:
        lines = "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects)
        self.files.append(REJECTS, np.frombuffer(lines.encode(), np.uint8))
        self.files.state["bad"] += len(rejects)

    def _check_rejects(self) -> None:
        bad, total = self.files.state["bad"], len(self.source) + len(self.source.rejects)
        if bad > self.options.max_bad * total:
            raise DataError(
                f"{bad} of {total} records cannot be used, more than {self.options.max_bad:.2%}; "
                f"{self.files.folder / REJECTS} says why: mend them, or allow more with --max-bad"
            )


def _complete(to: Path, latent: dict[str, Any], text: dict[str, Any], report: Report) -> int:
    """The number of samples of a cache that is there already."""
    manifest = read_manifest(to)
    _check_same(to, manifest["keys"] | read_manifest(to / "text")["keys"], latent | text)
    (to / JOURNAL).unlink(missing_ok=True)
    report(f"{to} is complete")
    return len(np.load(to / "places.npy", mmap_mode="r", allow_pickle=False))


def _check_same(folder: Path, keys: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in sorted(keys | wanted):
        if keys.get(name) != wanted.get(name):
            raise DataError(
                f"{folder} was made with another {name} ({keys.get(name)!r}) than asked for "
                f"({wanted.get(name)!r}); delete it or choose another place"
            )

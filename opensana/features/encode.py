"""Encode a source, block by block, into a growing cache.

Each block of records is one commit: the same command resumes a killed run and ends with the same
bytes. Blocks are encoded here or by the workers of a cluster; one process writes the cache, in the
source's order.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opensana.datasets.record import Reject, Source
from opensana.errors import DataError
from opensana.features.blocks import (
    BlockEncoder,
    End,
    Identity,
    Latent,
    Piece,
    States,
    fingerprint,
)
from opensana.features.latents import FeatureWriter, Sample
from opensana.features.manifest import read_manifest
from opensana.features.texts import TextWriter, caption_digest
from opensana.files.growing import JOURNAL, GrowingFiles
from opensana.workers.cluster import Cluster

BLOCK = 256
REPORT_SECONDS = 10.0
REJECTS = "rejects.jsonl"

Report = Callable[[str], None]
OpenBlockEncoder = Callable[[], BlockEncoder]
Pieces = Generator[Piece, None, None]
EncodeBlocks = Callable[[Sequence[range], Container[bytes]], Pieces]
"""(blocks, digests of known captions) to pieces in the blocks' order, without known captions."""


def encode(encoder: BlockEncoder, to: Path, *, report: Report) -> int:
    """Write the cache `to`, or resume it; returns the number of its samples.

    DataError if `to` or its unfinished part is from another source, model, size or version of this
    code, or if more than `max_bad` of the records cannot be used.
    """

    def here(blocks: Sequence[range], known: Container[bytes]) -> Pieces:
        for block in blocks:
            yield from encoder(block, known)

    return _write(encoder.source, to, encoder.identity(), here, encoder.options.max_bad, report)


def encode_on(
    cluster: Cluster,
    open_encoder: OpenBlockEncoder,
    source: Source,
    to: Path,
    *,
    max_bad: float,
    report: Report,
) -> int:
    """As `encode`, by the workers of a cluster, which open `source` and the encoders themselves.

    A caption that repeats in another block is encoded again; only one copy is written.
    """
    identity = cluster.call(partial(_identity, open_encoder))
    if identity.latent["source"] != fingerprint(source):
        raise DataError("the workers see another data set under its name than this machine")
    open_same = partial(_open_same, open_encoder, identity.keys)

    def spread(blocks: Sequence[range], known: Container[bytes]) -> Pieces:
        return cluster.map(open_same, blocks, ordered=True)

    return _write(source, to, identity, spread, max_bad, report)


def _identity(open_encoder: OpenBlockEncoder) -> Identity:
    return open_encoder().identity()


def _open_same(open_encoder: OpenBlockEncoder, keys: dict[str, Any]) -> BlockEncoder:
    encoder = open_encoder()
    own = encoder.identity().keys
    for name in keys:
        if own[name] != keys[name]:
            raise DataError(f"{socket.gethostname()} has another {name} than the other workers")
    return encoder


def _write(
    source: Source,
    to: Path,
    identity: Identity,
    encode_blocks: EncodeBlocks,
    max_bad: float,
    report: Report,
) -> int:
    if to.exists():
        manifest = read_manifest(to)
        keys = manifest["keys"] | read_manifest(to / "text")["keys"]
        _check_same(to, keys, identity.keys)
        (to / JOURNAL).unlink(missing_ok=True)
        report(f"{to} is complete")
        return len(np.load(to / "places.npy", mmap_mode="r", allow_pickle=False))
    partial = to.with_name(to.name + ".partial")
    with closing(GrowingFiles(partial)) as files:
        _check_same(partial, files.state.setdefault("keys", identity.keys), identity.keys)
        features = FeatureWriter(files, keys=identity.latent)
        texts = TextWriter(
            files,
            keys=identity.text,
            null=identity.null,
            prefix="text/",
            made_by=identity.made_by,
        )
        _Cache(source, files, features, texts, max_bad).fill(encode_blocks, report)
        files.finish()
        texts.close()
        features.close()
        os.replace(partial, to)
        (to / JOURNAL).unlink()
    return len(features)


class _Cache:
    """Writes the cache of a source, from the first record that is not in the files yet."""

    def __init__(
        self,
        source: Source,
        files: GrowingFiles,
        features: FeatureWriter,
        texts: TextWriter,
        max_bad: float,
    ) -> None:
        self.source, self.files, self.features, self.texts = source, files, features, texts
        self.max_bad = max_bad
        self.ids = texts.ids()

    def fill(self, encode_blocks: EncodeBlocks, report: Report) -> None:
        state, count = self.files.state, len(self.source)
        if "done" not in state:
            state |= {"done": 0, "bad": 0}
            self._reject(self.source.rejects)
        before, start, said = state["done"], time.monotonic(), 0.0
        blocks = [range(first, min(first + BLOCK, count)) for first in range(before, count, BLOCK)]
        with closing(encode_blocks(blocks, self.ids)) as pieces:
            for end in self._ends(pieces):
                state["done"] = end
                self.files.commit()
                bad, total = state["bad"], count + len(self.source.rejects)
                if bad > self.max_bad * total:
                    raise DataError(
                        f"{bad} of {total} records cannot be used, more than {self.max_bad:.2%}; "
                        f"{self.files.folder / REJECTS} says why: mend them, or allow more with "
                        "--max-bad"
                    )
                seconds = time.monotonic() - start
                if seconds - said > REPORT_SECONDS or end == count:
                    said, rate = seconds, (end - before) / seconds
                    left = f", {(count - end) / rate:.0f} s left" if end < count else ""
                    report(f"{end}/{count} records, {rate:.1f} samples/s{left}")

    def _ends(self, pieces: Iterable[Piece]) -> Iterator[int]:
        """Write the pieces, and yield the end of each block."""
        for piece in pieces:
            match piece:
                case Reject():
                    self._reject([piece])
                case States():
                    pairs = zip(piece.captions, piece.states, strict=True)
                    new = {t: rows for t, rows in pairs if caption_digest(t) not in self.ids}
                    for text in new:
                        self.ids[caption_digest(text)] = len(self.ids)
                    self.texts.add(list(new), new.values())
                case Latent():
                    ids = (self.ids[caption_digest(caption.text)] for caption in piece.captions)
                    scores = (caption.score for caption in piece.captions)
                    captioners = (caption.captioner for caption in piece.captions)
                    sample = Sample(piece.key, tuple(ids), tuple(scores), tuple(captioners))
                    self.features.add(piece.values[None], [sample])
                case End():
                    yield piece.index

    def _reject(self, rejects: Sequence[Reject]) -> None:
        lines = "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects)
        self.files.append(REJECTS, np.frombuffer(lines.encode(), np.uint8))
        self.files.state["bad"] += len(rejects)


def _check_same(folder: Path, keys: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in sorted(keys | wanted):
        if keys.get(name) != wanted.get(name):
            raise DataError(
                f"{folder} was made with another {name} ({keys.get(name)!r}) than asked for "
                f"({wanted.get(name)!r}); delete it or choose another place"
            )

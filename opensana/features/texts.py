"""Cached prompt embeddings (hidden states, paper 2.3), once per distinct caption.

    states.npy            float16 [T, D], the states of all captions without padding, concatenated
    offsets.npy           int64 [P + 1], the start of each caption's states
    captions.jsonl        the text of each caption; captions-offsets.npy has the start of each line
    null.npy              float16 [n, D], the states of the null caption, whose id is -1
    manifest.json         the keys of the text encoder

A separate folder, which caches of other autoencoders can reuse. float16 has 11 significant bits,
three more than bfloat16, in which large language models run.

B batch, N tokens, D hidden size.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opensana.errors import DataError
from opensana.features.manifest import Keys, check_keys, read_manifest, write_manifest
from opensana.files.growing import JOURNAL, GrowingFiles, Lines
from opensana.files.writing import atomic_folder

NULL = -1
LARGEST_HALF = float(np.finfo(np.float16).max)
MEASURED = 20_000
TEXT_KEYS = ("text_encoder", "text_encoder_hash", "instruction", "max_tokens", "text_version")


@dataclass(frozen=True)
class Texts:
    """The cached hidden states of captions, memory-mapped."""

    captions: Sequence[str]
    states: np.ndarray
    offsets: np.ndarray
    null: np.ndarray
    keys: dict[str, Any]
    made_by: dict[str, str] = field(default_factory=dict[str, str])
    """The model with the text encoder, and the dtype that it ran in."""

    @classmethod
    def open(cls, folder: str | Path, *, expect: Keys | None = None) -> "Texts":
        """Open a text folder; DataError if a key differs from what is expected."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        keys = manifest["keys"]
        check_keys(folder, keys, expect or {})
        texts = cls(
            captions=Lines(folder, "captions"),
            states=np.load(folder / "states.npy", mmap_mode="r", allow_pickle=False),
            offsets=np.load(folder / "offsets.npy", allow_pickle=False),
            null=np.load(folder / "null.npy", allow_pickle=False),
            keys=keys,
            made_by=manifest.get("made_by", {}),
        )
        complete = texts.offsets[-1] == len(texts.states)
        if not complete or len(texts.offsets) != len(texts.captions) + 1:
            raise DataError(f"{folder} is incomplete; encode it again")
        return texts

    def of(self, caption: int) -> np.ndarray:
        """The states [n, D] of one caption; NULL is the null caption."""
        if caption == NULL:
            return self.null
        if not 0 <= caption < len(self.captions):
            raise DataError(f"caption id {caption} is not in 0..{len(self.captions) - 1}")
        return self.states[self.offsets[caption] : self.offsets[caption + 1]]

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and std [D] of the states, from at most 20,000 evenly spaced ones."""
        chosen = np.linspace(0, len(self.states) - 1, min(MEASURED, len(self.states))).astype(int)
        deviation, mean = torch.std_mean(torch.from_numpy(self.states[chosen]).float(), dim=0)
        return mean, deviation

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest caption, be it the null caption."""
        return int(np.diff(self.offsets).max(initial=len(self.null)))

    def batch(
        self, captions: Sequence[int], *, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """States [B, N, D], zero at padding, and the mask [B, N]. float16 is exact."""
        return padded([self.of(caption) for caption in captions], dtype=dtype)


def padded(
    rows: Sequence[np.ndarray], *, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Pad states [n, D] of each caption to [B, N, D], with the mask [B, N]."""
    longest = max(len(row) for row in rows)
    states = torch.zeros(len(rows), longest, rows[0].shape[-1], dtype=dtype)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        states[index, : len(row)] = torch.from_numpy(np.array(row))
        mask[index, : len(row)] = True
    return states, mask


class TextWriter:
    """Writes a text folder, caption by caption, below `prefix` of growing files.

    `made_by` says where to find the text encoder. It is no key: the same encoder may be elsewhere.
    """

    def __init__(
        self,
        files: GrowingFiles,
        *,
        keys: Keys,
        null: np.ndarray,
        prefix: str = "",
        made_by: Mapping[str, str] | None = None,
    ) -> None:
        unknown = set(keys) ^ set(TEXT_KEYS)
        assert not unknown, f"text keys differ: {unknown}"
        self.files, self.prefix = files, prefix
        self.keys, self.null = dict(keys), halves("", null)
        self.made_by = dict(made_by or {})

    def __len__(self) -> int:
        """The number of captions, and the id of the next one."""
        return max(0, self.files.rows(self.prefix + "offsets.npy") - 1)

    def add(self, captions: Sequence[str], states: Iterable[np.ndarray]) -> None:
        """Append captions with their states [n, D] without padding; ids count up from 0."""
        rows = [halves(*pair) for pair in zip(captions, states, strict=True)]
        if not rows:
            return
        first = self.files.rows(self.prefix + "states.npy")
        ends = first + np.cumsum([len(row) for row in rows], dtype=np.int64)
        self.files.append(self.prefix + "states.npy", np.concatenate([self.null[:0], *rows]))
        self.files.append_ends(self.prefix + "offsets.npy", ends)
        self.files.append_lines(self.prefix + "captions", captions)

    def ids(self) -> dict[bytes, int]:
        """The ids of all written captions, by `caption_digest`."""
        name = self.prefix + "captions.jsonl"
        if not self.files.rows(name):
            return {}
        with (self.files.folder / name).open("rb") as lines:
            return {caption_digest(json.loads(line)): index for index, line in enumerate(lines)}

    def close(self) -> None:
        """Write the null states and the manifest; `files.finish` is up to the caller."""
        folder = self.files.folder / self.prefix
        np.save(folder / "null.npy", self.null)
        made_by = {"made_by": self.made_by} if self.made_by else {}
        write_manifest(folder, {"keys": self.keys, **made_by})


@contextmanager
def write_text(folder: Path, *, keys: Keys, null: np.ndarray) -> Iterator[TextWriter]:
    """Write a text folder, atomically."""
    with atomic_folder(folder) as temporary, closing(GrowingFiles(temporary)) as files:
        writer = TextWriter(files, keys=keys, null=null)
        yield writer
        files.finish()
        writer.close()
        (temporary / JOURNAL).unlink()


def caption_digest(caption: str) -> bytes:
    """A 16-byte digest, to remember millions of captions."""
    return hashlib.blake2b(caption.encode(), digest_size=16).digest()


def halves(caption: str, rows: np.ndarray) -> np.ndarray:
    if not (np.abs(rows) <= LARGEST_HALF).all():  # false for NaN as well
        raise DataError(f"the text states of {caption!r} do not fit in float16")
    return np.ascontiguousarray(rows, dtype=np.float16)

"""GGUF, the files of llama.cpp: metadata, and matrices in blocks, each with scales of its own.

    "GGUF", version, counts | keys and values | names, sizes, formats and offsets of tensors | data

Files come from anybody: no count, length or offset is believed.
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensana.errors import WeightsError, near
from opensana.weights.gguf_blocks import FORMATS, Blocks, Format

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_TENSORS, MOST_KEYS, MOST_ITEMS, LONGEST_TEXT = 2**16, 2**12, 2**22, 2**22
MOST_DIMENSIONS = 4
ALIGNMENT, ALIGNMENTS = 32, range(8, 2**16 + 1, 8)
SCALARS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
TEXT, ARRAY = 8, 9
DECODED_AT_ONCE = 2**24
"""Numbers: what decoding takes beside its result is a few times as many bytes."""


@dataclass(frozen=True)
class GgufTensor:
    """What the header says of one tensor; `offset` counts from the start of the file."""

    shape: tuple[int, ...]
    format: Format
    offset: int

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size // self.format.numbers * self.format.bytes


class GgufFile:
    """A file, checked and mapped: nothing of a tensor is read before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            self._read(_Cursor(self._map))
        except (OSError, ValueError, struct.error) as error:
            raise WeightsError(f"{path} is no GGUF file, or damaged ({error})") from error
        self._data = torch.frombuffer(self._map, dtype=torch.uint8)

    def _read(self, cursor: "_Cursor") -> None:
        if cursor.take(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := cursor.number("I")) not in VERSIONS:
            raise ValueError(f"version {version}, and 2 and 3 are read")
        tensors, keys = cursor.count(MOST_TENSORS, "tensors"), cursor.count(MOST_KEYS, "keys")
        for _ in range(keys):
            name = cursor.text()
            if name in self.metadata:
                raise ValueError(f"{name!r} stands there twice")
            self.metadata[name] = cursor.value(cursor.number("I"))
        for _ in range(tensors):
            name = cursor.text()
            if name in self.tensors:
                raise ValueError(f"{name!r} stands there twice")
            self.tensors[name] = cursor.tensor(name)
        align = self.metadata.get("general.alignment", ALIGNMENT)
        if align not in ALIGNMENTS:
            raise ValueError(f"its alignment is {align}")
        start = -(-cursor.at // align) * align
        for name, found in self.tensors.items():
            if found.offset % align or start + found.offset + found.bytes > len(cursor.data):
                raise ValueError(f"{name!r} lies outside of the file")
            self.tensors[name] = GgufTensor(found.shape, found.format, start + found.offset)

    def blocks(self, name: str) -> Blocks:
        """A quantised matrix in 8 bits, decoded a few rows at a time and no longer mapped then."""
        found = self._tensor(name)
        if (decode := found.format.decode) is None or len(found.shape) != 2:
            raise WeightsError(f"{self.path}: {name!r} is no quantised matrix")
        raw = self._raw(found).view(found.shape[0], -1, found.format.bytes)
        many = max(1, DECODED_AT_ONCE // found.shape[1])
        values = torch.empty(found.shape, dtype=torch.int8)
        scales: list[Tensor] = []
        minima: list[Tensor] = []
        for rows, target in zip(raw.split(many), values.split(many), strict=True):
            part = decode(rows)
            target.copy_(part.values)
            scales.append(part.scale.clone())
            minima += [] if part.minimum is None else [part.minimum]
            self._forget(found)
        return Blocks(values, torch.cat(scales), torch.cat(minima) if minima else None)

    def plain(self, name: str) -> Tensor:
        """A tensor of plain numbers, mapped."""
        found = self._tensor(name)
        if found.format.dtype is None:
            raise WeightsError(f"{self.path}: {name!r} is {found.format.name}, no plain numbers")
        return self._raw(found).view(found.format.dtype).view(found.shape)

    def _tensor(self, name: str) -> GgufTensor:
        if name not in self.tensors:
            raise WeightsError(f"{self.path} lacks {name!r}{near(name, list(self.tensors))}")
        return self.tensors[name]

    def _forget(self, found: GgufTensor) -> None:
        """Give the pages of a tensor back: they would count as this process's memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            first = found.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, found.offset + found.bytes - first)

    def _raw(self, found: GgufTensor) -> Tensor:
        return self._data[found.offset : found.offset + found.bytes]


class _Cursor:
    """Reads a header from its start; ValueError or struct.error where it is not as it should be."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ValueError("it ends too early")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def count(self, most: int, what: str) -> int:
        value = self.number("Q")
        if value > most:
            raise ValueError(f"{value} {what}, at most {most} are read")
        return value

    def text(self) -> str:
        """Bytes that are no UTF-8 are kept as lone surrogates."""
        return self.take(self.count(LONGEST_TEXT, "bytes of text")).decode(
            "utf-8", "surrogateescape"
        )

    def value(self, kind: int) -> Any:
        """A number, a text, or a list of either."""
        if kind == TEXT:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"a value of the unknown kind {kind}")
        kind, count = self.number("I"), self.count(MOST_ITEMS, "items")
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"a list of the unknown kind {kind}")
        packed = self.take(count * struct.calcsize("<" + SCALARS[kind]))
        return list(struct.unpack(f"<{count}{SCALARS[kind]}", packed))

    def tensor(self, name: str) -> GgufTensor:
        """Shape, format and offset within the data; sizes stand with the shortest stride first."""
        dimensions = self.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {dimensions} dimensions")
        sizes = [self.count(2**40, "numbers in a row") for _ in range(dimensions)]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in FORMATS:
            known = ", ".join(one.name for one in FORMATS.values())
            raise ValueError(f"{name!r} has the format {kind}; {known} are read")
        found = GgufTensor(tuple(reversed(sizes)), FORMATS[kind], offset)
        if not found.size or sizes[0] % found.format.numbers:
            raise ValueError(f"{name!r} has the shape {found.shape} in {found.format.name}")
        return found

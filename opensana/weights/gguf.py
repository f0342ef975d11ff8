"""GGUF, the files of llama.cpp: metadata, and matrices in blocks, each with scales of its own.

    "GGUF", version, counts | keys and values | names, sizes, formats and offsets of tensors | data

Every block that is read is scale * q - minimum with q in 8 bits: kept so (`layers/weight_only.py`)
it loses nothing. Files come from anybody: no count, length or offset is believed.

O rows, C numbers a row, N blocks a row, G scales a row.
"""

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opensana.errors import WeightsError, near

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_TENSORS, MOST_KEYS, MOST_ITEMS, LONGEST_TEXT = 2**16, 2**12, 2**22, 2**22
MOST_DIMENSIONS = 4
ALIGNMENT, ALIGNMENTS = 32, range(8, 2**16 + 1, 8)
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
TEXT, ARRAY = 8, 9
DECODED_AT_ONCE = 2**24
"""Numbers: what decoding takes beside its result is a few times as many bytes."""


class Blocks(NamedTuple):
    """A matrix [O, C] as scale[o, g] q[o, c] - minimum[o, g]."""

    values: Tensor  # int8 [O, C]
    scale: Tensor  # [O, G], float16 where the file has it so, else float32
    minimum: Tensor | None = None  # [O, G], float32


# ------------------------------------------------------------------ blocks [O, N, bytes]


def _half(block: Tensor, at: int = 0) -> Tensor:
    """The float16 [O, N] at an offset."""
    return block[..., at : at + 2].view(torch.float16)[..., 0]


def _bits(packed: Tensor, width: int) -> Tensor:
    """Unsigned numbers of so many bits in bytes [..., n]: [..., 8 / width, n], the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & (2**width - 1)


def _signed(numbers: Tensor, zero: int) -> Tensor:
    """Unsigned [O, N, ...] less what stands for zero, as int8 [O, C]."""
    return (numbers.view(torch.int8) - zero).flatten(1)


def _q4_0(block: Tensor) -> Blocks:
    return Blocks(_signed(_bits(block[..., 2:], 4), 8), _half(block))


def _q5_0(block: Tensor) -> Blocks:
    low = _bits(block[..., 6:], 4).flatten(-2)
    high = _bits(block[..., 2:6], 1).transpose(-1, -2).flatten(-2)
    return Blocks(_signed(low | high << 4, 16), _half(block))


def _q8_0(block: Tensor) -> Blocks:
    return Blocks(block[..., 2:].view(torch.int8).flatten(1), _half(block))


def _k_scales(block: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima [O, 8 N] of eight groups: 6 bits each, times the block's float16."""
    a, b, c = block[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    scale = torch.cat([a & 63, (c & 15) | ((a >> 2) & 48)], -1)
    minimum = torch.cat([b & 63, (c >> 4) | ((b >> 2) & 48)], -1)
    wholes = (_half(block, at).float()[..., None] for at in (0, 2))
    scale, minimum = (
        (whole * part.float()).flatten(1)
        for whole, part in zip(wholes, (scale, minimum), strict=True)
    )
    return scale, minimum


def _q4_k(block: Tensor) -> Blocks:
    low = _bits(block[..., 16:].unflatten(-1, (4, 32)), 4)
    return Blocks(_signed(low, 0), *_k_scales(block))


def _q5_k(block: Tensor) -> Blocks:
    low = _bits(block[..., 48:].unflatten(-1, (4, 32)), 4).flatten(-3, -2)
    return Blocks(_signed(low | _bits(block[..., 16:48], 1) << 4, 0), *_k_scales(block))


def _q6_k(block: Tensor) -> Blocks:
    low = _bits(block[..., :128].unflatten(-1, (2, 64)), 4).unflatten(-1, (2, 32)).flatten(-4, -2)
    high = _bits(block[..., 128:192].unflatten(-1, (2, 32)), 2).flatten(-3, -2)
    scale = _half(block, 208).float()[..., None] * block[..., 192:208].view(torch.int8).float()
    return Blocks(_signed(low | high << 4, 32), scale.flatten(1))


class Format(NamedTuple):
    """`bytes` hold `numbers`; plain numbers have a `dtype`, blocks are read by `decode`."""

    name: str
    numbers: int
    bytes: int
    dtype: torch.dtype | None = None
    decode: Callable[[Tensor], Blocks] | None = None


FORMATS = {
    0: Format("F32", 1, 4, torch.float32),
    1: Format("F16", 1, 2, torch.float16),
    2: Format("Q4_0", 32, 18, decode=_q4_0),
    6: Format("Q5_0", 32, 22, decode=_q5_0),
    8: Format("Q8_0", 32, 34, decode=_q8_0),
    12: Format("Q4_K", 256, 144, decode=_q4_k),
    13: Format("Q5_K", 256, 176, decode=_q5_k),
    14: Format("Q6_K", 256, 210, decode=_q6_k),
    30: Format("BF16", 1, 2, torch.bfloat16),
}


# ------------------------------------------------------------------ files


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
            with (
                path.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                self._read(_Cursor(data))
                size = len(data)
        except (OSError, ValueError, struct.error) as error:
            raise WeightsError(f"{path} is no GGUF file, or damaged ({error})") from error
        self._data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)

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
        """A quantised matrix in 8 bits, decoded a few rows at a time."""
        found = self._tensor(name)
        if (decode := found.format.decode) is None or len(found.shape) != 2:
            raise WeightsError(f"{self.path}: {name!r} is no quantised matrix")
        raw = self._raw(found).view(found.shape[0], -1, found.format.bytes)
        parts = [decode(rows) for rows in raw.split(max(1, DECODED_AT_ONCE // found.shape[1]))]
        values, scales, minima = zip(*parts, strict=True)
        minimum = None if minima[0] is None else torch.cat(minima)
        return Blocks(torch.cat(values), torch.cat(scales), minimum)

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

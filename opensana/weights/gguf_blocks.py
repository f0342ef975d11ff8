"""The blocks of GGUF: 16 to 256 numbers of 4 to 8 bits with their scales, as 8-bit integers.

Every one that is read is scale * q - minimum with q in 8 bits: kept so (`layers/weight_only.py`) it
loses nothing. The layouts are those of ggml's ggml-common.h. Decoders read bytes [O, N, bytes].

O rows, N blocks a row, C numbers a row, G scales a row.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Blocks(NamedTuple):
    """A matrix [O, C] as scale[o, g] q[o, c] - minimum[o, g]."""

    values: Tensor  # int8 [O, C]
    scale: Tensor  # [O, G], float16 where the file has it so, else float32
    minimum: Tensor | None = None  # [O, G], float32


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
    """`bytes` hold `numbers`; plain numbers have a `dtype`, blocks are read by `decode`.

    `held` is what a block of numbers takes in 8 bits, with its scales.
    """

    name: str
    numbers: int
    bytes: int
    dtype: torch.dtype | None = None
    decode: Callable[[Tensor], Blocks] | None = None
    held: int = 0


FORMATS = {
    0: Format("F32", 1, 4, torch.float32),
    1: Format("F16", 1, 2, torch.float16),
    2: Format("Q4_0", 32, 18, decode=_q4_0, held=34),
    6: Format("Q5_0", 32, 22, decode=_q5_0, held=34),
    8: Format("Q8_0", 32, 34, decode=_q8_0, held=34),
    12: Format("Q4_K", 256, 144, decode=_q4_k, held=320),
    13: Format("Q5_K", 256, 176, decode=_q5_k, held=320),
    14: Format("Q6_K", 256, 210, decode=_q6_k, held=320),
    30: Format("BF16", 1, 2, torch.bfloat16),
}

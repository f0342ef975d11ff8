"""Run local layers on a feature map in bands of rows.

Rows are pulled: the last layer is asked for its next rows and asks the one before for its input, up
to the stored map. Each layer keeps the few rows that its next band needs again, so no map between
two layers is ever complete in memory.

A layer runs on a band plus `halo` rows on either side, and the output of the halo is cut off, since
the zero padding at the ends of a band has spoilt it. So a layer computes 2 * halo rows per band
twice: 4 rows for a ResBlock.

B batch, C channels, H W height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """One step of the network, from rows [B, C, n, W] to rows [B, C', n * up / down, W'].

    An output row depends on the input rows at its position and on `halo` more above and below.
    """

    run: Callable[[Tensor], Tensor]
    channels: int
    halo: int
    working: int
    """Peak number of values alive in `run` per input position, with input and output."""
    up: int = 1
    down: int = 1

    def size(self, side: int) -> int:
        """Rows (or columns) of the output for those of the input."""
        return side * self.up // self.down

    def first(self, row: int) -> int:
        """The first input row that output row `row` depends on; may be negative."""
        return row * self.down // self.up - self.halo

    def end(self, row: int) -> int:
        """The end of the input rows that the output rows before `row` depend on."""
        return -(-row * self.down // self.up) + self.halo


class Rows(Protocol):
    """A map of `height` rows, of which the first `done` have been taken."""

    height: int
    done: int

    def take(self, rows: int) -> Tensor:
        """The next `rows` rows."""
        ...


class Stored:
    """The rows of a map [B, C, H, W] in memory."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.height = x.shape[2]
        self.done = 0

    def take(self, rows: int) -> Tensor:
        self.done += rows
        return self.x[:, :, self.done - rows : self.done]


class Layered:
    """The rows that a layer computes from the rows of a source."""

    def __init__(self, layer: Layer, source: Rows) -> None:
        self.layer = layer
        self.source = source
        self.height = layer.size(source.height)
        self.done = 0
        self.start = 0
        self.held: Tensor | None = None  # the source's rows from `start` to `source.done`

    def take(self, rows: int) -> Tensor:
        lacking = min(self.layer.end(self.done + rows), self.source.height) - self.source.done
        if self.held is None:
            self.held = self.source.take(lacking)
        elif lacking:
            self.held = torch.cat([self.held, self.source.take(lacking)], dim=2)
        held = self.held
        made, offset = self.layer.run(held), self.layer.size(self.start)
        self.done += rows
        start = max(self.layer.first(self.done), 0)
        self.held = held[:, :, start - self.start :].clone()  # a view would keep the band alive
        self.start = start
        return made[:, :, self.done - rows - offset : self.done - offset]

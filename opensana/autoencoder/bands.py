"""A feature map in bands of rows through layers that see only a few rows around each row.

The last layer is asked for its next rows and asks the one before it for those it lacks, up to the
map that is stored. Each layer keeps the few rows that its next band looks at again, so that
no map between two layers is ever there whole.

A layer runs on its band and `halo` rows on either side, and the halo's output is cut off: only
there does the zero padding at the ends of the run reach, unless the end is the picture's own.
So a layer computes 2 * halo rows a band twice, and nothing else is: 4 rows for a ResBlock.

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

    An output row depends on the input rows at its place and on `halo` more above and below.
    """

    run: Callable[[Tensor], Tensor]
    channels: int
    halo: int
    working: int
    """Numbers alive at the peak of `run` for each input position, input and output included."""
    up: int = 1
    down: int = 1

    def size(self, side: int) -> int:
        """Rows (or columns) of the output for those of the input."""
        return side * self.up // self.down

    def first(self, row: int) -> int:
        """The first input row that output row `row` depends on, above the border or not."""
        return row * self.down // self.up - self.halo

    def end(self, row: int) -> int:
        """The end of the input rows that the output rows before `row` depend on."""
        return -(-row * self.down // self.up) + self.halo


class Rows(Protocol):
    """A map of `height` rows, of which the ones before `done` have been taken."""

    height: int
    done: int

    def take(self, rows: int) -> Tensor:
        """The next `rows` rows."""
        ...


class Stored:
    """The rows of a map [B, C, H, W] that is there whole."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.height = x.shape[2]
        self.done = 0

    def take(self, rows: int) -> Tensor:
        self.done += rows
        return self.x[:, :, self.done - rows : self.done]


class Layered:
    """The rows that a layer makes of the rows of a source."""

    def __init__(self, layer: Layer, source: Rows) -> None:
        self.layer = layer
        self.source = source
        self.height = layer.size(source.height)
        self.done = 0
        self.start = 0
        self.held: Tensor | None = None  # the source's rows from `start` to `source.done`

    def take(self, rows: int) -> Tensor:
        held = self._until(min(self.layer.end(self.done + rows), self.source.height))
        made, offset = self.layer.run(held), self.layer.size(self.start)
        self.done += rows
        start = max(self.layer.first(self.done), 0)
        self.held = held[:, :, start - self.start :].clone()  # a view would keep the whole band
        self.start = start
        return made[:, :, self.done - rows - offset : self.done - offset]

    def _until(self, end: int) -> Tensor:
        """The rows from `start` to `end`."""
        lacking = end - self.source.done
        if self.held is None:
            self.held = self.source.take(lacking)
        elif lacking:
            self.held = torch.cat([self.held, self.source.take(lacking)], dim=2)
        return self.held

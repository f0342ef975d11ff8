"""Named tensors of a checkpoint, read when asked for: whole, or a range of rows.

What one process saved is one file. What several saved is one file each, and a tensor that stands in
all of them is their rows in order; what stands in the first alone was held by all. So no index is
needed, and any number of processes may read what any other number has written.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


class Stored(Mapping[str, Tensor]):
    """The tensors of the files of one group, in the order of the processes that wrote them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [safe_open(path, framework="pt") for path in files]
        self._names = [frozenset(file.keys()) for file in self._files]

    def __getitem__(self, name: str) -> Tensor:
        parts = [file.get_tensor(name) for file in self._holding(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names[0]))

    def __len__(self) -> int:
        return len(self._names[0])

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the whole tensor; its values are not read."""
        shapes = [file.get_slice(name).get_shape() for file in self._holding(name)]
        if not shapes[0]:
            return ()
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor; only they are read."""
        slices = [file.get_slice(name) for file in self._holding(name)]
        ends = list(accumulate(part.get_shape()[0] for part in slices))
        begins = [0, *ends[:-1]]
        parts = [
            part[max(start, begin) - begin : min(stop, end) - begin]
            for part, begin, end in zip(slices, begins, ends, strict=True)
            if max(start, begin) < min(stop, end)
        ]
        return torch.cat(parts) if parts else slices[0][0:0]

    def _holding(self, name: str) -> list:
        found = [
            file for file, names in zip(self._files, self._names, strict=True) if name in names
        ]
        if not found:
            raise KeyError(name)
        return found


def shape_of(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    return tensors.shape(name) if isinstance(tensors, Stored) else tuple(tensors[name].shape)


def rows_of(tensors: Mapping[str, Tensor], name: str, start: int, stop: int) -> Tensor:
    if isinstance(tensors, Stored):
        return tensors.rows(name, start, stop)
    return tensors[name][start:stop]

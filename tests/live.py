"""The bytes of tensors that are alive at once while something runs, counted as they come and go.

On `meta` nothing is computed and shapes are as large as they may be; on a CPU the numbers are there
too. What a library takes inside of an operation is not seen, nor what was made before.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
"""One kernel on a GPU, which makes nothing but its output."""


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if func is not ATTENTION and func.namespace == "aten":
            with self:  # in inference mode composite operations come whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if _held(x)}
        out = func(*args, **kwargs)
        for x in filter(_held, tree_leaves(out)):
            if id(x.untyped_storage()) not in given:
                self._add(x)
        return out

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        if storage in self._known:
            return
        size = self._known[storage] = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.bytes -= size


def _held(x: object) -> bool:
    return isinstance(x, Tensor) and x.layout == torch.strided


def peak_of(act: Callable[[], object]) -> int:
    """The most bytes that were alive at once of what `act` makes, its result included."""
    with Live() as live:
        made = act()
    del made
    return live.peak

"""A stand-in for `torch.cuda` that records on the CPU, as CUDA graphs do on a GPU.

While it records, results are NaN at the end: on a GPU nothing is computed then. A replay runs every
operation again on the very tensors of the recording and writes into the very results; nothing of
Python runs again. So an input that was not copied, and a number that Python had decided, show.
"""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WITHOUT_NUMBERS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class CUDAGraph:
    """Operations with the tensors that they read and write."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def replay(self) -> None:
        for func, args, kwargs, made in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(made, tensors(again), strict=bool(made)):
                old.copy_(new)


class graph(TorchDispatchMode):
    """What runs under it belongs to the graph."""

    def __init__(
        self, cuda_graph: CUDAGraph, pool: object, stream: object, *, capture_error_mode: str
    ) -> None:
        super().__init__()
        assert pool is not None and capture_error_mode == "thread_local"
        self.graph = cuda_graph

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if func is not ATTENTION:
            with self:  # in inference mode composite operations come whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits"
        made = func(*args, **kwargs)
        given = {storage(x) for x in tensors((args, kwargs))}
        new = [x for x in tensors(made) if storage(x) not in given]
        name = func.overloadpacket.__name__
        if (new or func._schema.is_mutable) and name not in WITHOUT_NUMBERS:
            self.graph.operations.append((func, args, kwargs, new))
        return made

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        for *_, made in self.graph.operations:
            for x in made:
                x.fill_(torch.nan if x.is_floating_point() else 0)


class Stream:
    def wait_stream(self, other: "Stream") -> None: ...


def stream(_: Stream) -> AbstractContextManager[None]:
    return nullcontext()


def device(_: torch.device) -> AbstractContextManager[None]:
    return nullcontext()


def current_stream() -> Stream:
    return Stream()


def graph_pool_handle() -> tuple[int, int]:
    return 0, 1


def tensors(value: object) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata

"""CUDA graphs of velocities: the kernels of a step recorded once, then launched as one.

A replay runs the same kernels on the same addresses, and nothing of Python. So whatever differs
from step to step or from picture to picture is copied to the graph's own tensors first: the latent,
one row of numbers that is the moment, and once a drawing the text. All else is part of the `Key`.
The numbers are those of the same kernels launched one by one.

Shapes: B rows of the batch, T timesteps, K numbers of a moment.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, is_dataclass, replace
from threading import RLock
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

cuda = torch.cuda
KEPT = 4
"""Graphs of a model; the one that was not asked for longest goes first, with its memory."""
MOST_TOKENS = 8192
"""Of all rows together: with more, kernels take longer than their launches, and a graph would only
hold memory."""
TEXT_LENGTHS = (8, 16, 32, 64, 128, 304)
"""Texts are padded to the next of these, so that prompts share graphs; 304 is 300 in eights."""
WARM_UPS = 2
"""Runs before recording: libraries set themselves up, which a graph must not hold."""

Key = Hashable
Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class Network(Protocol):
    """What has velocities: the transformer, or one with a ControlNet."""

    def velocity(self, latent: Tensor, timestep: Any, prepared: Any) -> Tensor: ...


@dataclass
class Recorded:
    """A graph with the tensors that it reads and writes."""

    graph: Any
    latent: Tensor  # [B, C, h, w]
    row: Tensor  # [1, K], the moment
    text: list[Tensor]
    velocity: Tensor
    outside: list[Tensor]
    """All else that it reads, such as weights and positions: kept where it is."""
    drawing: object = None
    """Whose text it holds."""


class Drawing:
    """Velocities of one drawing: of a text, at the moments of its timesteps."""

    def __init__(self, graphs: "Graphs", network: Network, moments: Any, text: Any) -> None:
        """`moments` are what `Stack.moment` made of timesteps [T]; the text is that of B rows."""
        self._graphs, self._network, self._moments, self._text = graphs, network, moments, text
        self._rows = torch.cat([part.flatten(1) for part in tensors(moments)], dim=1)
        self._recorded: Recorded | None = None
        self._token = object()

    def __call__(self, latent: Tensor, index: int) -> Tensor:
        """The velocity of a latent [B, C, h, w] at one of the timesteps."""
        row = self._rows[index : index + 1]
        with self._graphs.lock:  # another thread's drawing may have the same shapes
            if self._recorded is None:
                self._recorded = self._graphs.recorded(
                    self._network, latent, row, self._moments, self._text
                )
            kept = self._recorded
            if kept.drawing is not self._token:
                torch._foreach_copy_(kept.text, tensors(self._text))  # pyright: ignore
                kept.drawing = self._token
            kept.latent.copy_(latent)
            kept.row.copy_(row)
            kept.graph.replay()
            return kept.velocity.clone()


class Graphs:
    """The graphs of a model's networks, recorded as they are needed.

    They share the memory for what is between inputs and velocity, so that one runs at a time.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        self._kept: OrderedDict[Key, Recorded] = OrderedDict()
        self._pool: Any = None

    def __len__(self) -> int:
        return len(self._kept)

    def forget(self) -> None:
        """Free the memory of all graphs."""
        with self.lock:
            self._kept.clear()
            self._pool = None

    def recorded(
        self, network: Network, latent: Tensor, row: Tensor, moments: Any, text: Any
    ) -> Recorded:
        """The graph for inputs of these shapes, recorded if it is not at hand."""
        key = (*_weights(network), layout(latent), layout(row), changed(text, layout))
        with self.lock:
            if key not in self._kept:
                while len(self._kept) >= KEPT:  # its memory serves the next
                    self._kept.popitem(last=False)
                self._pool = self._pool or cuda.graph_pool_handle()
                self._kept[key] = record(network, latent, row, moments, text, pool=self._pool)
            self._kept.move_to_end(key)
            return self._kept[key]


@torch.no_grad()
def record(
    network: Network, latent: Tensor, row: Tensor, moments: Any, text: Any, *, pool: Any
) -> Recorded:
    """Record the kernels of a velocity, for whatever inputs of the same shapes."""
    with torch.inference_mode(False):  # else nothing could be copied to them outside of it
        latent, row, text = (changed(one, Tensor.clone) for one in (latent, row, text))
    moment = moment_of(row, moments)

    def call() -> Tensor:
        return network.velocity(latent, moment, text)

    with cuda.device(latent.device):
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):
            for _ in range(WARM_UPS):
                call()
        cuda.current_stream().wait_stream(stream)
        graph, outside = cuda.CUDAGraph(), Outside()
        # Other threads, such as those that write files, may go on meanwhile.
        recording = cuda.graph(graph, pool, stream, capture_error_mode="thread_local")
        with recording, outside:
            velocity = call()
    return Recorded(graph, latent, row, tensors(text), velocity, outside.read)


def moment_of(row: Tensor, moments: Any) -> Any:
    """A moment for all rows of a batch, as views of its numbers [1, K]."""
    done = 0

    def view(part: Tensor) -> Tensor:
        nonlocal done
        begin, done = done, done + part[0].numel()
        return row[:, begin:done].unflatten(1, part.shape[1:])

    return changed(moments, view)


class Outside(TorchDispatchMode):
    """Collects the tensors that were not made under it: a graph does not keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        for one in tensors([*args, *kwargs.values()]):
            if (storage := one.untyped_storage()._cdata) not in self._known:
                self._known.add(storage)
                self.read.append(one)
        made = func(*args, **kwargs)
        self._known |= {one.untyped_storage()._cdata for one in tensors(made)}
        return made


def layout(x: Tensor) -> Layout:
    """What of a tensor is part of a graph beside its address."""
    return x.shape, x.stride(), x.dtype, x.device


def changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Tuples, lists and dataclasses as they are, with every tensor in them changed."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {one.name: changed(getattr(value, one.name), change) for one in fields(value)}
        return replace(value, **parts)
    if isinstance(value, tuple | list):
        parts = [changed(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def tensors(value: Any) -> list[Tensor]:
    """All tensors in it, in order."""
    found: list[Tensor] = []
    changed(value, found.append)
    return found


def _weights(network: Network) -> tuple[Hashable, ...]:
    """Where the weights of a network are: a graph reads them there, if others now or none."""
    module = cast(nn.Module, network)
    return type(network), *(x.data_ptr() for x in (*module.parameters(), *module.buffers()))

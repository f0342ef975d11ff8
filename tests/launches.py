"""What a run asks of an accelerator, counted without one.

Tensors on torch's `meta` device have shapes alone, and fake tensors claim to be on `cuda:0`, which
only a CUDA build of torch takes through a network; both stand for those of a GPU. Under `Launches`
nothing is computed, and every operation is seen: the kernels it launches, the bytes that they move,
and where the host waits for a number.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
WHOLE = (aten.scaled_dot_product_attention.default, aten.rms_norm.default)
"""One kernel on a GPU, whichever of its forms torch picks; a norm's in tokens."""
NO_KERNEL = ("empty", "detach", "lift", "alias", "_unsafe_view")


class Launches(TorchDispatchMode):
    """Counts what runs on the accelerator; float64 there is an error, as on an Apple GPU.

    One operation of torch counts as one kernel: some libraries need two, such as cuDNN for a
    convolution with a bias. Views and allocations are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes = 0
        self.host_reads: list[str] = []
        """Operations whose result the host waits for, and copies in flight to it."""
        self.uploads: list[str] = []
        """Copies from the host."""
        self.uploaded = 0
        """Their bytes."""

    @property
    def count(self) -> int:
        return self.kernels.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if func is aten.dropout.default and not (args[1] and args[2]):
            return args[0]  # torch does nothing then; in inference mode it would be seen as a copy
        whole = func in WHOLE and not _is_map(args[0])
        if not whole and func.namespace == "aten":
            with self:  # in inference mode composite operations come whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in given if on_accelerator(x)]
        if there and func is aten._local_scalar_dense.default:
            self.host_reads.append("item")
            return there[0].dtype.is_floating_point or True
        if there and func is aten._to_copy.default and _to_host(kwargs):
            self.host_reads.append(_copy("cpu", kwargs))
            return torch.ones(there[0].shape, dtype=kwargs.get("dtype") or there[0].dtype)
        out = func(*args, **kwargs)
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor) and on_accelerator(x)]
        if any(x.dtype == torch.float64 for x in made):
            raise TypeError(f"{func} makes float64 on an accelerator")
        name = func.name().removeprefix("aten::")
        if out is None:  # a `_foreach` in place
            made = [x for x in tree_leaves(_written(func, args)) if on_accelerator(x)]
        if made and not there and given:
            self.uploads.append(_copy(name, kwargs))
            self.uploaded += sum(_nbytes(x) for x in given)
        elif made and not func.is_view and not any(word in name for word in NO_KERNEL):
            self.kernels[name] += 1
            self.bytes += sum(_nbytes(x) for x in (*there, *made))
        return out


def _written(func: Any, args: Any) -> list[object]:
    """The arguments that an operation writes to."""
    pairs = zip(func._schema.arguments, args, strict=False)
    return [value for known, value in pairs if known.is_write]


def on_accelerator(x: Tensor) -> bool:
    return x.device.type != "cpu"


def _is_map(x: Tensor) -> bool:
    """Whether torch takes a tensor for a map in channels last, which its norm has no kernel for."""
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _copy(name: str, kwargs: Any) -> str:
    """A copy that the host does not wait for is in flight."""
    return f"{name} in flight" if kwargs.get("non_blocking") else name


def _to_host(kwargs: Any) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


def _nbytes(x: Tensor) -> int:
    """Of the numbers that are read or written: an expanded dimension is read once."""
    sizes = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
    count = 1
    for size in sizes:
        count *= size
    return count * x.itemsize


def faked(module: nn.Module, device: str = "cuda") -> nn.Module:
    """The module with fake tensors in place of its own; to be called in FakeTensorMode."""

    def fake(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=device)

    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            part._parameters[name] = nn.Parameter(fake(parameter), requires_grad=False)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = fake(buffer)
    return module

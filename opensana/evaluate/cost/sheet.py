"""What a network multiplies, as a list of products: each has its operations and its traffic.

A product is a matrix product, a convolution or a fused attention. Its traffic is what it reads and
writes once: inputs, weights and output. Whatever lies between products (norms, activations, sums)
counts as fused into them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from opensana.models.flops import META

SDPA = torch.ops.aten.scaled_dot_product_attention


class Product(NamedTuple):
    """Multiply-accumulates, and numbers read and written; one MAC is two operations."""

    macs: int
    numbers: int


@dataclass(frozen=True)
class Sheet:
    """The products of a network with how often each occurs, and its parameters."""

    products: Counter[Product] = field(default_factory=Counter)
    parameters: int = 0

    def __add__(self, other: "Sheet") -> "Sheet":
        return Sheet(self.products + other.products, self.parameters + other.parameters)

    def times(self, count: int) -> "Sheet":
        """As many copies one after another, each with its own parameters."""
        return Sheet(
            Counter({product: count * n for product, n in self.products.items()}),
            count * self.parameters,
        )

    @property
    def macs(self) -> int:
        return sum(product.macs * count for product, count in self.products.items())

    @property
    def numbers(self) -> int:
        return sum(product.numbers * count for product, count in self.products.items())


def linear(tokens: int, inner: int, outer: int, *, bias: bool = True) -> Sheet:
    """A linear layer on so many tokens."""
    weight = inner * outer
    product = Product(tokens * weight, tokens * (inner + outer) + weight)
    return Sheet(Counter([product]), weight + bias * outer)


def convolution(positions: int, inner: int, outer: int, kernel: int, *, stride: int = 1) -> Sheet:
    """A square convolution with bias that writes so many positions."""
    weight = inner * outer * kernel**2
    product = Product(positions * weight, positions * (inner * stride**2 + outer) + weight)
    return Sheet(Counter([product]), weight + outer)


def attention(queries: int, keys: int, width: int, *, key_width: int | None = None) -> Sheet:
    """Softmax attention, fused: its scores are not written. `width` is heads times head size.

    `key_width` is that of grouped keys and values, which are read once.
    """
    read = 2 * queries * width + 2 * keys * (key_width or width)
    return Sheet(Counter([Product(2 * queries * keys * width, read)]))


def counted(network: nn.Module, forward: Callable[[], Any]) -> Sheet:
    """The sheet of a network on the meta device: `forward` runs it on shapes alone."""
    meter = _Meter()
    with torch.inference_mode(), META, meter:
        forward()
    return Sheet(meter.products, sum(p.numel() for p in network.parameters()))


class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func.overloadpacket)
        if func.overloadpacket is not SDPA and count is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if func.overloadpacket is SDPA:
            query, key, value = args[:3]
            macs = query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            read = [query, key, value]
        elif count is not None:
            macs = count(*args, **kwargs, out_val=output) // 2
            read = [value for value in args if isinstance(value, Tensor)]
        else:
            return output
        self.products[Product(macs, sum(t.numel() for t in (*read, output)))] += 1
        return output

"""The operations between 8-bit products in C++ (int8.cpp): those of int8_block.py, a pass each.

For float32 tokens on a CPU. B batch, N tokens, C channels, K channels inside the Mix-FFN.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from opensana.runtime.int8 import Rows, quantised
from opensana.runtime.kernels import compiled

# Pointers, sizes, floats and the number of threads, in the order of int8.cpp.
SIGNATURES = {
    "int8_quantised": "pppiit",
    "int8_modulated": "pppppiiift",
    "int8_attended": "ppppppppiiiift",
    "int8_mixed": "pppppppiiiit",
    "int8_added": "ppppppiiit",
}
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "t": ctypes.c_int}
OF_PRODUCTS = ("int8_attended", "int8_mixed", "int8_added")


class CompiledOperations:
    """`Operations` by the compiled functions of int8.cpp."""

    def __init__(self, folder: Path) -> None:
        library = ctypes.CDLL(str(compiled("int8", folder)))
        # Where the processor has bfloat16, products are written in half the bytes.
        self.product_dtype = (
            torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
        )
        suffix = "_bfloat16" if self.product_dtype == torch.bfloat16 else ""
        self._functions = {
            name: getattr(library, name + (suffix if name in OF_PRODUCTS else ""))
            for name in SIGNATURES
        }
        for name, function in self._functions.items():
            function.argtypes, function.restype = [TYPES[t] for t in SIGNATURES[name]], None

    def quantised(self, x: Tensor, *, twice: bool = False) -> Rows:
        if twice:
            return quantised(x, twice=True)
        tokens = x.contiguous()
        rows = _empty_rows(tokens.shape)
        channels = tokens.shape[-1]
        self._run("int8_quantised", [tokens, *rows], [tokens.numel() // channels, channels])
        return rows

    def modulated(self, tokens: Tensor, norm: nn.LayerNorm, shift: Tensor, scale: Tensor) -> Rows:
        multiply, rows = 1 + scale, _empty_rows(tokens.shape)
        if norm.weight is not None:
            shift, multiply = shift + norm.bias * multiply, norm.weight * multiply
        multiply, shift = (x.expand(len(tokens), 1, -1).contiguous() for x in (multiply, shift))
        self._run("int8_modulated", [tokens, multiply, shift, *rows], list(tokens.shape), norm.eps)
        return rows

    def attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: Tensor,
        norms: tuple[nn.Module, nn.Module],
        heads: int,
    ) -> Rows:
        batch, tokens, channels = q.shape
        rows = _empty_rows(q.shape)
        weights = [cast(Tensor | None, getattr(norm, "weight", None)) for norm in norms]
        self._run(
            "int8_attended",
            [q, k, v, scale, *weights, *rows],
            [batch, tokens, heads, channels // heads],
            getattr(norms[0], "eps", 0.0),
        )
        return rows

    def mixed(
        self,
        product: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        depthwise: nn.Conv2d,
        grid: tuple[int, int],
    ) -> Rows:
        hidden = product.shape[-1] // 2
        rows = _empty_rows((*product.shape[:-1], hidden), twice=True)
        taps = depthwise.weight.flatten(1).t().contiguous()
        tensors = [product, scale, bias, taps, depthwise.bias, *rows]
        self._run("int8_mixed", tensors, [len(product), *grid, hidden])
        return rows

    def added(
        self, tokens: Tensor, product: Tensor, scale: Tensor, bias: Tensor | None, gate: Tensor
    ) -> Tensor:
        gate, out = gate.expand(len(tokens), 1, -1).contiguous(), torch.empty_like(tokens)
        tensors = [tokens, product, scale, bias, gate, out]
        self._run("int8_added", tensors, list(tokens.shape))
        return out

    def _run(
        self, name: str, tensors: list[Tensor | None], sizes: list[int], *floats: float
    ) -> None:
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors), name
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        self._functions[name](*pointers, *sizes, *floats, torch.get_num_threads())


def _empty_rows(shape: Sequence[int], *, twice: bool = False) -> Rows:
    values = torch.empty((2, *shape) if twice else shape, dtype=torch.uint8)
    return Rows(values, torch.empty((*shape[:-1], 1)))

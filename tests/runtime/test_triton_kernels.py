"""The kernels in Triton equal their plain forms: here by Triton's interpreter, on a CPU.

    pip install triton
    TRITON_INTERPRET=1 python -m pytest tests/runtime/test_triton_kernels.py

On a machine with CUDA tests/gpu runs the kernels themselves.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensana.layers.linear_attention import attention_state, relu_linear_attention
from opensana.layers.mix_ffn import depthwise_gated
from opensana.runtime.triton_blocks import use_triton
from opensana.transformer.attention import split_heads
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from tests import tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None,
        reason="Triton is not installed: a gigabyte that only GPUs need; see docs/gpu.md",
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="on a CPU, TRITON_INTERPRET=1 runs these"
    ),
]
ROUNDED = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative errors; the interpreter cuts bfloat16 off where a GPU rounds it."""


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    from opensana.runtime import triton_kernels

    with torch.inference_mode():
        yield triton_kernels


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def heads(tokens: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys and values of 3 heads, as views of what projections give."""
    torch.manual_seed(tokens)
    return [split_heads(torch.randn(2, tokens, 3 * size).to(dtype), 3) for _ in range(3)]


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize(("tokens", "size"), [(1, 32), (64, 32), (100, 16), (1000, 32), (70, 64)])
def test_linear_attention(kernels: Any, tokens: int, size: int, dtype: torch.dtype) -> None:
    queries, keys, values = heads(tokens, size, dtype)
    state, expected = kernels.sum_states(keys, values), attention_state(keys, values)
    assert relative(state.values, expected.values) < 1e-6
    assert relative(state.keys, expected.keys) < 1e-6
    found = kernels.linear_attention(queries, keys, values)
    assert found.shape == queries.shape and found.dtype == dtype
    wanted = relu_linear_attention(*(part.float() for part in (queries, keys, values)))
    assert relative(found, wanted) < ROUNDED[dtype]


def test_a_query_without_a_match_gives_zero(kernels: Any) -> None:
    queries, keys, values = heads(40, 32, torch.float32)
    found = kernels.linear_attention(-queries.abs(), keys, values)
    assert torch.equal(found, torch.zeros_like(found))


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("size", [(1, 1, 40), (5, 7, 40), (8, 8, 96), (3, 33, 64)])
def test_the_gate(kernels: Any, size: tuple[int, int, int], dtype: torch.dtype) -> None:
    height, width, hidden = size
    torch.manual_seed(0)
    layer = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden).to(dtype)
    x = torch.randn(2, 2 * hidden, height, width).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    found = kernels.gate_depthwise(layer, x)
    assert found.shape == (2, hidden, height, width) and found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative(found, depthwise_gated(layer.float(), x.float())) < ROUNDED[dtype]


def test_gradients_come_from_the_plain_forms(kernels: Any) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        parts = [part.clone().requires_grad_() for part in heads(20, 16, torch.float32)]
        kernels.linear_attention(*parts).sum().backward()
        assert all(part.grad is not None for part in parts)
        layer = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        kernels.gate_depthwise(layer, torch.randn(1, 8, 4, 4)).sum().backward()
        assert layer.weight.grad is not None


def test_a_whole_transformer(kernels: Any) -> None:
    assert kernels.HEADS[0] == 16
    config = TransformerConfig(**{**vars(tiny.TRANSFORMER), "attention_head_dim": 16,
                                  "cross_attention_dim": 32})  # fmt: skip
    network = Transformer(config).eval()
    tiny.randomise(network, 1)
    names = list(network.state_dict())
    latent, states = torch.randn(2, 8, 4, 6), torch.randn(2, 5, tiny.TEXT_WIDTH)
    expected = network(latent, torch.tensor([900.0, 20.0]), states)
    use_triton(network, torch.device("cpu"))
    assert list(network.state_dict()) == names
    found = network(latent, torch.tensor([900.0, 20.0]), states)
    assert not torch.equal(found, expected), "the kernels round otherwise"
    assert relative(found, expected) < 1e-5


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from opensana.runtime import triton_kernels as k

sizes = {"D": 32, "BLOCK": k.TOKENS, "P": k.POSITIONS, "C": k.CHANNELS}
for capability in (80, 89, 90):
    for half in ("*bf16", "*fp32"):
        pointers = dict.fromkeys(("keys", "values", "queries", "out", "x", "weight", "bias"), half)
        pointers |= {"sums": "*fp32", "totals": "*fp32", "eps": "fp32"}
        for kernel in (k._sum_states, k._attend_states, k._gate_depthwise):
            names = kernel.arg_names
            constants = {name: sizes[name] for name in names if name in sizes}
            signature = {
                name: "constexpr" if name in sizes else pointers.get(name, "i32") for name in names
            }
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            assert compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
"""


@pytest.mark.slow
def test_they_compile_for_gpus_that_are_not_here() -> None:
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)

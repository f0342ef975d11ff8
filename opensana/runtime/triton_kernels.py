"""Three kernels in Triton for CUDA, each beside its plain form in torch: an extra for drawing.

    sum_states       S and z of linear attention      layers/linear_attention.py attention_state
    attend_states    f(Q) S / (f(Q) z)                layers/linear_attention.py attend
    gate_depthwise   3x3 depthwise, x * SiLU(gate)    layers/mix_ffn.py depthwise_gated

They read half precision as it lies and multiply and sum in float32, where the plain forms write
float32 copies between their operations. None has a backward pass: with gradients the plain form
runs. `runtime/triton_blocks.py` puts them in; nothing needs them. Triton comes with torch for CUDA.

B batch, N tokens, D channels of a head, K channels behind the gate, H W the map.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from opensana.layers.linear_attention import AttentionState, relu_linear_attention
from opensana.layers.mix_ffn import depthwise_gated

TOKENS = 64
"""Tokens of a block that one step reads."""
MOST_SPLITS = 32
"""Parts that a head's tokens are summed in, side by side."""
HEADS = (16, 32, 64, 128)
"""Channels of a head: Triton's blocks are powers of two, and its products take 16 and more."""
POSITIONS, CHANNELS = 32, 64
EPS = 1e-15


def jit(kernel: Callable[..., None]) -> Any:
    """`triton.jit`, of which type checkers know nothing where it is not installed."""
    return triton.jit(kernel)


@jit
def _sum_states(
    keys, values, sums, totals, count, heads, per_split,
    key_b, key_h, key_n, value_b, value_h, value_n,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's S [D, D] and z [D] over one split of its tokens."""
    head, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    batch, inner = head // heads, head % heads
    lanes, rows = tl.arange(0, D), tl.arange(0, BLOCK)
    keys += batch * key_b + inner * key_h
    values += batch * value_b + inner * value_h
    matrix = tl.zeros((D, D), dtype=tl.float32)
    vector = tl.zeros((D,), dtype=tl.float32)
    first = split * per_split
    for start in range(first, first + per_split, BLOCK):
        token = start + rows
        inside = (token < count) & (token < first + per_split)
        here = inside[:, None]
        key = tl.load(keys + token[:, None] * key_n + lanes[None, :], mask=here, other=0.0)
        value = tl.load(values + token[:, None] * value_n + lanes[None, :], mask=here, other=0.0)
        key = tl.maximum(key.to(tl.float32), 0.0)
        matrix += tl.dot(tl.trans(key), value.to(tl.float32), input_precision="ieee")
        vector += tl.sum(key, axis=0)
    place = head * tl.num_programs(1) + split
    tl.store(sums + place * D * D + lanes[:, None] * D + lanes[None, :], matrix)
    tl.store(totals + place * D + lanes, vector)


@jit
def _attend_states(
    queries, sums, totals, out, count, heads, eps,
    query_b, query_h, query_n, out_b, out_h, out_n,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's output for one block of tokens."""
    head = tl.program_id(0).to(tl.int64)
    token, lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    batch, inner = head // heads, head % heads
    here = (token < count)[:, None]
    queries += batch * query_b + inner * query_h
    query = tl.load(queries + token[:, None] * query_n + lanes[None, :], mask=here, other=0.0)
    query = tl.maximum(query.to(tl.float32), 0.0)
    matrix = tl.load(sums + head * D * D + lanes[:, None] * D + lanes[None, :])
    vector = tl.load(totals + head * D + lanes)
    weight = tl.sum(query * vector[None, :], axis=1) + eps
    found = tl.dot(query, matrix, input_precision="ieee") / weight[:, None]
    out += batch * out_b + inner * out_h
    tl.store(out + token[:, None] * out_n + lanes[None, :], found.to(out.dtype.element_ty), here)


@jit
def _gate_depthwise(
    x, weight, bias, out, height, width, hidden,
    P: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """P positions of C channels, with those of their gate; maps are channels last."""
    position = tl.program_id(0) * P + tl.arange(0, P)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    batch = tl.program_id(2).to(tl.int64)
    row, column = position // width, position % width
    known = channel < hidden
    x += batch * height * width * 2 * hidden
    value = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    gate = tl.load(bias + hidden + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    value, gate = tl.broadcast_to(value, (P, C)), tl.broadcast_to(gate, (P, C))
    for tap in tl.static_range(9):
        near, side = row + tap // 3 - 1, column + tap % 3 - 1
        inside = (near >= 0) & (near < height) & (side >= 0) & (side < width)
        here = inside[:, None] & known[None, :]
        place = x + (near * width + side)[:, None] * (2 * hidden) + channel[None, :]
        taps = weight + 9 * channel + tap
        one = tl.load(place, mask=here, other=0.0).to(tl.float32)
        other = tl.load(place + hidden, mask=here, other=0.0).to(tl.float32)
        value += one * tl.load(taps, mask=known, other=0.0).to(tl.float32)[None, :]
        gate += other * tl.load(taps + 9 * hidden, mask=known, other=0.0).to(tl.float32)[None, :]
    found = value * gate * tl.sigmoid(gate)
    out += batch * height * width * hidden
    here = (position < height * width)[:, None] & known[None, :]
    place = out + position[:, None] * hidden + channel[None, :]
    tl.store(place, found.to(out.dtype.element_ty), here)


def sum_states(keys: Tensor, values: Tensor) -> AttentionState:
    """`attention_state` of keys and values [B, heads, N, D], as views of [B, N, heads * D]."""
    batch, heads, count, size = keys.shape
    keys, values = _lanes_together(keys), _lanes_together(values)
    splits = max(1, min(MOST_SPLITS, count // (4 * TOKENS)))
    per_split = -(-count // splits)
    per_split = -(-per_split // TOKENS) * TOKENS
    splits = -(-count // per_split)
    sums = keys.new_empty(batch * heads, splits, size, size, dtype=torch.float32)
    totals = keys.new_empty(batch * heads, splits, size, dtype=torch.float32)
    _sum_states[(batch * heads, splits)](
        keys, values, sums, totals, count, heads, per_split,
        *keys.stride()[:3], *values.stride()[:3], D=size, BLOCK=TOKENS,
    )  # fmt: skip
    shape = (batch, heads, size, -1)
    return AttentionState(sums.sum(1).view(shape), totals.sum(1).view(shape))


def attend_states(
    queries: Tensor, state: AttentionState, *, dtype: torch.dtype, eps: float = EPS
) -> Tensor:
    """`attend` of queries [B, heads, N, D]: the same in `dtype`, a view of [B, N, heads, D]."""
    batch, heads, count, size = queries.shape
    queries = _lanes_together(queries)
    sums, totals = state.values.contiguous(), state.keys.contiguous()
    out = queries.new_empty(batch, count, heads, size, dtype=dtype).transpose(1, 2)
    _attend_states[(batch * heads, -(-count // TOKENS))](
        queries, sums, totals, out, count, heads, eps,
        *queries.stride()[:3], *out.stride()[:3], D=size, BLOCK=TOKENS,
    )  # fmt: skip
    return out


def linear_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`relu_linear_attention` for drawing; heads have HEADS channels."""
    if torch.is_grad_enabled():
        return relu_linear_attention(queries, keys, values)
    return attend_states(queries, sum_states(keys, values), dtype=values.dtype)


def gate_depthwise(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """`depthwise_gated` for drawing: a map [B, 2K, H, W] to [B, K, H, W], both channels last."""
    if torch.is_grad_enabled():
        return depthwise_gated(layer, x)
    batch, channels, height, width = x.shape
    hidden = channels // 2
    tokens = x.permute(0, 2, 3, 1).contiguous()
    assert layer.bias is not None, "the Mix-FFN's convolution has a bias"
    out = tokens.new_empty(batch, height, width, hidden)
    blocks = (-(-height * width // POSITIONS), -(-hidden // CHANNELS), batch)
    _gate_depthwise[blocks](
        tokens,
        layer.weight.contiguous(),
        layer.bias,
        out,
        height,
        width,
        hidden,
        P=POSITIONS,
        C=CHANNELS,
    )
    return out.permute(0, 3, 1, 2)


def _lanes_together(heads: Tensor) -> Tensor:
    """The same with the channels of a head side by side in memory."""
    return heads if heads.stride(-1) == 1 else heads.contiguous()

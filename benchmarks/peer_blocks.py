"""One block of each peer in its published shape, in plain torch with random weights.

The sizes are those that `opensana cost` counts (`evaluate/cost/peers.py`). Tests compare the
operations with its counts, and the numbers of small blocks with diffusers'.
Attention is torch's fused softmax attention, and whatever can be done in place is.

Shapes: B batch, N image tokens, M text tokens, C width, [B, N, C] at boundaries.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.transformer.attention import join_heads, split_heads
from opensana.transformer.block import add_product, modulate

EPS = 1e-6
TURNS_BASE = 10_000.0


class FeedForward(nn.Module):
    """Linear to 4 C, GELU by tanh, linear back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.down(gelu_(self.up(tokens)))


class Heads(nn.Module):
    """Queries, keys and values of tokens as heads [B, H, N, D]; FLUX norms and turns the first two.

    Keys and values may be of other tokens, as in a cross-attention.
    """

    def __init__(self, width: int, heads: int, *, normed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ParameterList(torch.ones(width // heads) for _ in range(2 if normed else 0))

    def forward(
        self, tokens: Tensor, others: Tensor | None = None, turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        others = tokens if others is None else others
        parts = (self.to_q(tokens), self.to_k(others), self.to_v(others))
        queries, keys, values = (split_heads(part, self.heads) for part in parts)
        if self.norms:
            queries, keys = (
                F.rms_norm(part, part.shape[-1:], norm, EPS)
                for part, norm in zip((queries, keys), self.norms, strict=True)
            )
        if turns is not None:
            queries, keys = turned_(queries, turns), turned_(keys, turns)
        return queries, keys, values


class Stream(nn.Module):
    """The part of a two-stream block that one of text and image has for itself."""

    def __init__(self, width: int, heads: int, *, normed: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention = Heads(width, heads, normed=normed)
        self.out = nn.Linear(width, width)
        self.feed_forward = FeedForward(width)

    def finished(self, tokens: Tensor, attended: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        gate, shift, scale, gate_mlp = parts
        tokens = add_product(tokens, gate, self.out(attended))
        mixed = self.feed_forward(modulate(normed(tokens), shift, scale))
        return add_product(tokens, gate_mlp, mixed)


class DoubleBlock(nn.Module):
    """FLUX's double block, or with `turns` None SD3's MM-DiT block: two streams, one attention."""

    def __init__(self, width: int, heads: int, *, normed: bool) -> None:
        super().__init__()
        self.image = Stream(width, heads, normed=normed)
        self.text = Stream(width, heads, normed=normed)

    def forward(
        self, tokens: Tensor, text: Tensor, condition: Tensor, turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`condition` [B, C] of time and pooled text; `turns` of text and image positions."""
        streams, count = (self.text, self.image), text.shape[1]
        of_text, of_image = (None, None) if turns is None else (turns[:count], turns[count:])
        rest, heads = [], []
        for stream, each, turn in zip(streams, (text, tokens), (of_text, of_image), strict=True):
            shift, scale, *others = stream.modulation(F.silu(condition))[:, None].chunk(6, -1)
            rest.append(tuple(others))
            heads.append(stream.attention(modulate(normed(each), shift, scale), turns=turn))
        joined = [torch.cat(pair, dim=2) for pair in zip(*heads, strict=True)]
        del heads
        attended = join_heads(softmax_attention(*joined))
        del joined
        return (
            self.image.finished(tokens, attended[:, count:], rest[1]),
            self.text.finished(text, attended[:, :count], rest[0]),
        )


class SingleBlock(nn.Module):
    """FLUX's single block: attention and feed-forward side by side on text and image together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.attention = Heads(width, heads, normed=True)
        self.up = nn.Linear(width, 4 * width)
        self.out = nn.Linear(5 * width, width)

    def forward(self, tokens: Tensor, condition: Tensor, turns: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition))[:, None].chunk(3, -1)
        inner = modulate(normed(tokens), shift, scale)
        attended = join_heads(softmax_attention(*self.attention(inner, turns=turns)))
        mixed = gelu_(self.up(inner))
        del inner
        both = torch.cat([attended, mixed], dim=-1)
        del attended, mixed
        return add_product(tokens, gate, self.out(both))


class PixArtBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; one modulation for all blocks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))
        self.attention, self.cross = Heads(width, heads), Heads(width, heads)
        self.out, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
        self.feed_forward = FeedForward(width)

    def forward(self, tokens: Tensor, modulation: Tensor, text: Tensor) -> Tensor:
        """`modulation` [B, 6, C] from the timestep, `text` [B, M, C]."""
        parts = (self.scale_shift_table + modulation).chunk(6, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        inner = modulate(normed(tokens), shift_a, scale_a)
        attended = self.out(join_heads(softmax_attention(*self.attention(inner))))
        tokens = add_product(tokens, gate_a, attended)
        across = join_heads(softmax_attention(*self.cross(tokens, text)))
        tokens = tokens + self.cross_out(across)
        mixed = self.feed_forward(modulate(normed(tokens), shift_m, scale_m))
        return add_product(tokens, gate_m, mixed)


def softmax_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Of heads [B, H, N, D] to heads, fused: the N x N scores are not written."""
    return F.scaled_dot_product_attention(queries, keys, values)


def normed(tokens: Tensor) -> Tensor:
    """A layer norm without weights."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPS)


def gelu_(tokens: Tensor) -> Tensor:
    return torch.ops.aten.gelu_(tokens, approximate="tanh")


def rotary_turns(count: int, channels: int) -> Tensor:
    """Complex turns [N, D / 2] of N positions; their values do not change the time."""
    steps = torch.arange(0, channels, 2, dtype=torch.float32) / channels
    angles = torch.arange(count)[:, None] * torch.exp(-math.log(TURNS_BASE) * steps)
    return torch.polar(torch.ones_like(angles), angles)


def turned_(heads: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions (RoFormer, arXiv 2104.09864) of heads [B, H, N, D], in float32.

    In place where the heads are float32.
    """
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(turns)).flatten(-2).to(heads.dtype)

"""Linear self-attention and softmax cross-attention of a block (paper 2.2).

Shapes: B batch, N image tokens, M text tokens, C channels, [B, N, C] at boundaries.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.norm import RMSNorm
from opensana.layers.weight_only import plain_weight

FLOAT16_LIMIT = 65504.0


class KeysValues(NamedTuple):
    """A text's keys and values [B, heads, M, D] in one cross-attention."""

    keys: Tensor
    values: Tensor


class FoldedText(NamedTuple):
    """A short text with the query and output projections folded in: `CrossAttention.fold`."""

    keys: Tensor  # [B, C, heads * M]
    bias: Tensor  # [B, 1, heads * M]
    values: Tensor  # [B, heads * M, C]

    def masked(self, mask: Tensor) -> "FoldedText":
        """Attended to where `mask` [B, M] is true and nowhere else, without a mask beside it."""
        bias = self.bias.unflatten(-1, (-1, mask.shape[1]))
        bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
        return self._replace(bias=bias.flatten(2))


class SeveralTexts(NamedTuple):
    """Texts of different lengths in one batch, each for the next rows of the images."""

    texts: tuple["KeysValues | FoldedText", ...]
    rows: tuple[int, ...]
    masks: tuple[Tensor | None, ...]


BlockText = Tensor | KeysValues | FoldedText | SeveralTexts
"""What a cross-attention reads: projected captions, or what was made of them."""


class SelfAttention(nn.Module):
    """ReLU linear self-attention of image tokens, [B, N, C] in and out.

    QK normalisation (SANA-1.5) is an RMSNorm over all heads.
    """

    core: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Linear attention of queries, keys and values [B, heads, N, D]."""

    def __init__(
        self, channels: int, heads: int, *, bias: bool, qk_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.core = relu_linear_attention
        self.to_q = nn.Linear(channels, channels, bias=bias)
        self.to_k = nn.Linear(channels, channels, bias=bias)
        self.to_v = nn.Linear(channels, channels, bias=bias)
        self.norm_q = RMSNorm(channels) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(channels) if qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([nn.Linear(channels, channels), nn.Dropout(dropout)])

    def forward(self, tokens: Tensor) -> Tensor:
        queries = split_heads(self.norm_q(self.to_q(tokens)), self.heads)
        keys = split_heads(self.norm_k(self.to_k(tokens)), self.heads)
        values = split_heads(self.to_v(tokens), self.heads)
        out = join_heads(self.core(queries, keys, values))
        for layer in self.to_out:
            out = layer(out)
        if tokens.dtype == torch.float16:
            out = out.clamp(-FLOAT16_LIMIT, FLOAT16_LIMIT)
        return out


class CrossAttention(nn.Module):
    """Softmax attention from image tokens [B, N, C] to text tokens [B, M, C].

    The text is projected captions, or the keys and values made of them: these do not depend on the
    timestep, so a sampler computes them once per prompt.
    """

    fold_dtype = torch.float32
    fold_cost = 1
    """Time of a folded product's number, relative to one of the projections'."""

    def __init__(
        self, channels: int, heads: int, head_channels: int, *, qk_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        inner = heads * head_channels
        self.heads = heads
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.norm_q = RMSNorm(inner) if qk_norm else nn.Identity()
        self.norm_k = RMSNorm(inner) if qk_norm else nn.Identity()
        self.to_out = nn.ModuleList([nn.Linear(inner, channels), nn.Dropout(dropout)])

    @property
    def output(self) -> nn.Linear:
        return cast(nn.Linear, self.to_out[0])

    def keys_values(self, captions: Tensor) -> KeysValues:
        """Keys and values of projected captions [B, M, C]."""
        return KeysValues(
            split_heads(self.norm_k(self.to_k(captions)), self.heads),
            split_heads(self.to_v(captions), self.heads),
        )

    def fold(self, text: KeysValues, *, half: bool = False) -> "KeysValues | FoldedText":
        """Multiply `to_q` and `to_out` into the text, if that makes attention cheaper.

        x Wq^T K^T = x (K Wq)^T: with fewer columns (heads * M) than channels, two narrow products
        replace two square ones. Not with QK normalisation, which stands between. In half precision
        only if `half`: it is folded in float32 and rounded once.
        """
        keys, values = text
        stored = keys.dtype
        normed = not isinstance(self.norm_q, nn.Identity)
        columns = keys.shape[1] * keys.shape[2]
        cheaper = columns * self.fold_cost < self.output.out_features
        if normed or not cheaper or (stored != torch.float32 and not half):
            return text
        keys, values = keys.float() * keys.shape[-1] ** -0.5, values.float()
        query = plain_weight(self.to_q).float().unflatten(0, (self.heads, -1))
        output = plain_weight(self.output).float().unflatten(1, (self.heads, -1))
        bias = self.to_q.bias.float().unflatten(0, (self.heads, -1))
        rounded = self.fold_dtype if stored == torch.float32 else stored
        return FoldedText(
            torch.einsum("bhmd,hdc->bchm", keys, query).flatten(2).to(rounded),
            torch.einsum("bhmd,hd->bhm", keys, bias).flatten(1)[:, None].to(stored),
            torch.einsum("bhmd,chd->bhmc", values, output).flatten(1, 2).to(rounded),
        )

    def forward(self, tokens: Tensor, text: BlockText, mask: Tensor | None) -> Tensor:
        """Attend to the text where `mask` [B, M] is true (None: everywhere).

        Several texts are attended to one by one: padded to one length, the sums over them would
        round otherwise than alone.
        """
        if isinstance(text, SeveralTexts):
            parts = zip(tokens.split(text.rows), text.texts, text.masks, strict=True)
            return torch.cat([self(part, one, allowed) for part, one, allowed in parts])
        if isinstance(text, FoldedText):
            scores = tokens.to(text.keys.dtype) @ text.keys + text.bias
            scores = scores.unflatten(-1, (self.heads, -1))
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
            weights = scores.softmax(-1).flatten(2).to(text.values.dtype)
            return weights @ text.values + self.output.bias
        keys, values = self.keys_values(text) if isinstance(text, Tensor) else text
        queries = split_heads(self.norm_q(self.to_q(tokens)), self.heads)
        batch = (len(tokens), -1, -1, -1)  # one prompt may serve a batch of images
        allowed = None if mask is None else mask[:, None, None, :]
        out = F.scaled_dot_product_attention(
            queries, keys.expand(batch), values.expand(batch), attn_mask=allowed
        )
        out = join_heads(out)
        for layer in self.to_out:
            out = layer(out)
        return out


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, N, heads * D] -> [B, heads, N, D]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """[B, heads, N, D] -> [B, N, heads * D]."""
    return tokens.transpose(1, 2).flatten(2)

"""One Linear DiT block: linear attention, cross-attention, Mix-FFN (paper 2.2, figure 5).

Shapes: B batch, N = H * W image tokens, M text tokens, C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.layers.mix_ffn import MixFFN
from opensana.transformer.attention import (
    BlockText,
    CrossAttention,
    FoldedText,
    KeysValues,
    SelfAttention,
)
from opensana.transformer.config import TransformerConfig


class Block(nn.Module):
    """Tokens [B, N, C] in and out.

    adaLN-single (PixArt-alpha, arXiv 2310.00426, section 2.3) modulates self-attention and Mix-FFN:
    shift and scale after the norm, gate before the addition. Cross-attention has none of these.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, qk_norm = config.width, config.qk_norm is not None
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps, elementwise_affine=False)
        self.attn1 = SelfAttention(
            width,
            config.num_attention_heads,
            bias=config.attention_bias,
            qk_norm=qk_norm,
            dropout=config.dropout,
        )
        self.attn2 = CrossAttention(
            width,
            config.num_cross_attention_heads,
            config.cross_attention_head_dim,
            qk_norm=qk_norm,
            dropout=config.dropout,
        )
        self.norm2 = nn.LayerNorm(
            width, eps=config.norm_eps, elementwise_affine=config.norm_elementwise_affine
        )
        self.ff = MixFFN(width, config.hidden)
        self.scale_shift_table = nn.Parameter(torch.zeros(6, width))

    def settle(self, modulation: Tensor) -> Tensor:
        """What `forward` takes of the modulation [T, 6, C] of all timesteps."""
        return modulation

    def fold(self, text: KeysValues) -> KeysValues | FoldedText:
        """What `forward` takes of a text, for inference: see `CrossAttention.fold`."""
        return self.attn2.fold(text)

    def forward(
        self,
        tokens: Tensor,
        modulation: Tensor,
        text: BlockText,
        mask: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """`modulation` [B, 6, C] from the timestep; `text` and `mask` as in CrossAttention."""
        table = self.scale_shift_table + modulation
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.chunk(6, dim=1)
        attended = self.attn1(modulate(self.norm1(tokens), shift_a, scale_a))
        tokens = add_product(tokens, gate_a, attended)
        tokens = tokens + self.attn2(tokens, text, mask)
        mixed = self._mix(modulate(self.norm2(tokens), shift_m, scale_m), grid)
        return add_product(tokens, gate_m, mixed)

    def _mix(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        feature_map = tokens.transpose(1, 2).unflatten(2, grid)
        return self.ff(feature_map).flatten(2).transpose(1, 2)


class OutputNorm(nn.Module):
    """The final layer norm of tokens [B, N, C], modulated by the time embedding [B, C]."""

    def forward(self, tokens: Tensor, embedding: Tensor, table: Tensor) -> Tensor:
        shift, scale = (table + embedding[:, None]).chunk(2, dim=1)
        return modulate(F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6), shift, scale)


def modulate(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """tokens * (1 + scale) + shift, with shift and scale [B, 1, C]."""
    return add_product(shift, tokens, 1 + scale)


def add_product(base: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """base + one * other, fused by addcmul; not in training, where its backward costs more."""
    if torch.is_grad_enabled():
        return base + one * other
    return torch.addcmul(base, one, other)

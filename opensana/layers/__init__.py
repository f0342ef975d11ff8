"""Layers shared by the autoencoder and the transformer (paper 2.1 and 2.2)."""

from opensana.layers.convolution import Conv3x3
from opensana.layers.linear_attention import (
    AttentionState,
    attend,
    attention_state,
    relu_linear_attention,
)
from opensana.layers.mix_ffn import MixFFN
from opensana.layers.norm import RMSNorm, RMSNorm2d, add_normed

__all__ = [
    "AttentionState",
    "Conv3x3",
    "MixFFN",
    "RMSNorm",
    "RMSNorm2d",
    "add_normed",
    "attend",
    "attention_state",
    "relu_linear_attention",
]

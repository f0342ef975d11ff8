"""The layers that the autoencoder and the transformer share (paper 2.1 and 2.2)."""

from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.mix_ffn import MixFFN
from opensana.layers.norm import RMSNorm, RMSNorm2d

__all__ = ["MixFFN", "RMSNorm", "RMSNorm2d", "relu_linear_attention"]

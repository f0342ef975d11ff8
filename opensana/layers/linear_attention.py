"""ReLU linear attention, O(N) in tokens (paper 2.2, EfficientViT, arXiv 2205.14756, section 3.1).

    O_i = f(Q_i) S / (f(Q_i) z)    with f = ReLU, S = sum_j f(K_j)^T V_j, z = sum_j f(K_j)^T

S and z are one small matrix and one vector per head: two matrix products replace the N x N scores
of softmax attention.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opensana.layers.precision import without_autocast


@dataclass(frozen=True)
class AttentionState:
    """The sums S and z over all tokens, in float32; states of subsets of the tokens add up."""

    values: Tensor  # [B, heads, D, D], S
    keys: Tensor  # [B, heads, D, 1], z

    def __add__(self, other: "AttentionState") -> "AttentionState":
        return AttentionState(self.values + other.values, self.keys + other.keys)


def attention_state(key: Tensor, value: Tensor) -> AttentionState:
    """S and z of keys and values [B, heads, N, D]."""
    key = _relu(key)
    with without_autocast(key.device):
        values = key.transpose(-1, -2) @ value.float()
    return AttentionState(values, key.sum(dim=-2).unsqueeze(-1))


def attend(query: Tensor, state: AttentionState, *, eps: float = 1e-15) -> Tensor:
    """f(Q_i) S / (f(Q_i) z) of queries [B, heads, N, D], [B, heads, N, D] in float32."""
    # One product for S and z: a matrix-vector product alone would take longer than all the rest.
    with without_autocast(query.device):
        both = _relu(query) @ torch.cat([state.values, state.keys], dim=-1)
    values, weights = both.split([state.values.shape[-1], 1], dim=-1)
    return values * (weights + eps).reciprocal()


def relu_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, *, eps: float = 1e-15
) -> Tensor:
    """Attend with queries, keys and values [B, heads, N, D]; returns [B, heads, N, D].

    The sums are float32, under autocast too: over all tokens they overflow half precision. The
    result has the dtype of `value`. With `eps` a query without any matching key gives zero.
    """
    return attend(query, attention_state(key, value), eps=eps).to(value.dtype)


def _relu(heads: Tensor) -> Tensor:
    """ReLU in float32, contiguous by head: the matrix products would copy it anyway."""
    copied = heads.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return copied.relu_()

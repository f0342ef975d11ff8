"""ReLU linear attention, O(N) in tokens (paper 2.2, equation 2).

    O_i = f(Q_i) S / (f(Q_i) z)    with f = ReLU, S = sum_j f(K_j)^T V_j, z = sum_j f(K_j)^T

The sums over all tokens are one small matrix and one vector a head: two matrix products replace
the N x N table of softmax attention.
"""

from torch import Tensor
from torch.nn import functional as F


def relu_linear_attention(
    query: Tensor, key: Tensor, value: Tensor, *, eps: float = 1e-15
) -> Tensor:
    """Attend with queries, keys and values [B, heads, N, D]; returns [B, heads, N, D].

    Sums run in float32, since they add up over all tokens and overflow half precision; the
    result has the dtype of `value`. `eps` keeps a query without any matching key at zero.
    """
    query, key = F.relu(query.float()), F.relu(key.float())
    state = key.transpose(-1, -2) @ value.float()
    normaliser = query @ key.sum(dim=-2).unsqueeze(-1)
    return (query @ state / (normaliser + eps)).to(value.dtype)

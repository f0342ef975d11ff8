"""torch.compile for training."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch import config


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, compiled when it first runs; its backward pass rounds what eager mode would."""
    exact_backward()
    return torch.compile(function)


def exact_backward() -> None:
    """Have backward passes compiled as autograd runs them: outside of the forward's autocast.

    By torch's default the compiler runs them inside, so that the gradients of products that the
    forward kept in float32 are rounded to bfloat16.
    """
    config.backward_pass_autocast = "off"

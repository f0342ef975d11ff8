"""torch.compile for training."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._functorch import config

AVX2_BITS = 256


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, compiled when it first runs; its backward pass gives what eager mode would."""
    exact_backward()
    narrow_vectors()
    return torch.compile(function)


def exact_backward() -> None:
    """Have backward passes compiled as autograd runs them: outside of the forward's autocast.

    By torch's default the compiler runs them inside, so that the gradients of products that the
    forward kept in float32 are rounded to bfloat16.
    """
    config.backward_pass_autocast = "off"


def narrow_vectors() -> None:
    """Have loops written for AVX2 where a CPU has AVX-512; kernels that torch brings are not.

    What torch 2.13 writes for AVX-512 gives NaN gradients in bfloat16 (linear attention's).
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        from torch._inductor import config as inductor  # two seconds, for those who compile

        inductor.cpp.simdlen = AVX2_BITS

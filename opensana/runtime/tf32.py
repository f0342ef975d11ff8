"""TF32: how a CUDA GPU multiplies float32.

Its tensor cores round the operands of a product to 10 bits (TF32), and are eight times as fast as
float32 in full. By torch's default convolutions are TF32 and matrix products full: neither fast nor
exact. Here both are the same: full where float32 was asked for, TF32 where it is only what is left,
in a network of half precision or on a card without bfloat16.
"""

from typing import Any

import torch


def settle_float32(device: torch.device, *, full: bool) -> dict[str, str]:
    """Choose for the whole process; returns what a picture records of it, on CUDA alone."""
    if device.type != "cuda":
        return {}
    precision = "ieee" if full else "tf32"
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    cuda.fp32_precision = cudnn.conv.fp32_precision = precision
    # Sums of float16 products stay float32: the published float16 models come near its limit.
    cuda.allow_fp16_reduced_precision_reduction = False
    return {"float32_products": precision}

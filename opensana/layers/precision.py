"""Matrix products that stay in float32 under mixed precision (autocast)."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast, which would round the operands of every matrix product."""
    known = torch.amp.is_autocast_available(device.type)  # not on `meta`
    if known and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()

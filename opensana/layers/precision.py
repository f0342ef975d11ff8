"""Products that stay in float32 where a training computes the others in bfloat16."""

from contextlib import AbstractContextManager, nullcontext

import torch


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """The context in which products have the format of their operands.

    Autocast rounds the operands of every product, those that were widened on purpose too.
    """
    known = torch.amp.is_autocast_available(device.type)  # not on `meta`
    if known and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()

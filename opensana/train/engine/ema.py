"""Exponential moving average of the weights: what is evaluated, sampled and exported."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from opensana.train.engine import foreach
from opensana.train.engine.shards import local

Module = TypeVar("Module", bound=nn.Module)


class Average(Generic[Module]):
    """EMA weights: a second module that follows the trained one; frozen parameters are shared.

    The decay warms up as (1 + t) / (10 + t), so that early averages forget the random start.
    """

    def __init__(self, model: Module, *, decay: float) -> None:
        frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.module = copy.deepcopy(model, frozen).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: Module, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        pairs = [(local(average), local(value)) for average, value in pairs if average is not value]
        if pairs:
            foreach.lerp_(*map(list, zip(*pairs, strict=True)), weight)
        for average, value in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(value)

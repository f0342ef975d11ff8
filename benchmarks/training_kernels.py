"""Kernels, bytes and waits of a training step of the published 0.6B shape on an accelerator.

    python -m benchmarks.training_kernels

Nothing is computed and no GPU is needed: tensors on torch's `meta` device have shapes alone. One
operation of torch counts as one kernel; one over a list of tensors (`_foreach`) may take several.
The last line is JSON.
"""

import argparse
import json
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from opensana.models.presets import transformer_preset
from opensana.train.engine.ema import Average
from opensana.train.optim.optimizers import Optimizers, is_matrix
from opensana.train.recipe import OptimizerRecipe
from opensana.transformer.model import Transformer
from tests.launches import Launches

PRESET = "sana_600m_1024"
COUNTED: tuple[Literal["came", "muon"], ...] = ("came", "muon")
"""torch's fused AdamW takes no tensors without numbers: it is a few launches."""


def network() -> Transformer:
    with torch.device("meta"):
        return Transformer(transformer_preset(PRESET))


def of_optimizer(model: nn.Module, name: Literal["came", "muon"]) -> dict[str, Any]:
    """The second step of an optimiser; in the first, its state is made."""
    named = dict(model.named_parameters())
    if name == "muon":  # its rest is AdamW's
        named = {key: p for key, p in named.items() if is_matrix(key, p)}
    optimizer = Optimizers(named, OptimizerRecipe(name=name, weight_decay=0.01))
    with_gradients(named)
    optimizer.step(lr=1e-3)
    with_gradients(named)
    with Launches() as seen:
        optimizer.step(lr=1e-3)
    return figures(seen)


def of_average(model: nn.Module) -> dict[str, Any]:
    average = Average(model, decay=0.999)
    with Launches() as seen:
        average.update(model, 1)
    return figures(seen)


def with_gradients(named: Mapping[str, Tensor]) -> None:
    for parameter in named.values():
        parameter.grad = torch.empty_like(parameter)


def figures(seen: Launches) -> dict[str, Any]:
    return {
        "kernels": seen.count,
        "gigabytes": round(seen.bytes / 1e9, 2),
        "host_reads": len(seen.host_reads),
        "uploads": len(seen.uploads),
    }


def main() -> None:
    argparse.ArgumentParser(description="Kernels of a training step, counted.").parse_args()
    model = network()
    results = {name: of_optimizer(model, name) for name in COUNTED}
    results["average"] = of_average(model)
    for name, found in results.items():
        print(name, found)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

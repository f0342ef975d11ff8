"""Kernels, bytes and waits of a training step of the published 0.6B shape on an accelerator.

    python -m benchmarks.training_kernels

Nothing is computed and no GPU is needed: tensors on torch's `meta` device have shapes alone. One
operation of torch counts as one kernel; one over a list of tensors (`_foreach`) may take several.
The host waits for copies that are not in flight. A whole step is of the trainer, with batches of
features of random numbers, in float32. The last line is JSON.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.gpu.training import ALONE, RECIPE, write_random_features
from opensana.models.flops import META
from opensana.models.presets import transformer_preset
from opensana.train.engine.ema import Average
from opensana.train.engine.parallel import Processes
from opensana.train.optim.optimizers import Optimizers, is_matrix
from opensana.train.recipe import OptimizerRecipe, TransformerRecipe, load_recipe
from opensana.train.transformer import task as training
from opensana.train.transformer.batches import Stream
from opensana.train.transformer.drawing import drawn_texts
from opensana.train.transformer.draws import BlockDraws
from opensana.train.transformer.networks import PlainNetwork
from opensana.train.transformer.task import FlowTask
from opensana.transformer.model import Transformer, TransformerConfig
from tests.launches import Launches

PRESET = "sana_600m_1024"
COUNTED: tuple[Literal["came", "muon"], ...] = ("came", "muon")
"""torch's fused AdamW takes no tensors without numbers: it is a few launches."""
STEP = ("optimizer.name=came", "dtype=float32", "batch=8", "accumulate=2")


def network() -> Transformer:
    with META:
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


def of_step() -> dict[str, Any]:
    """A step of the trainer, from a batch as the loader makes it."""
    with TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        own = [f"data.folder={cache}", f"run={Path(name) / 'run'}", *ALONE, *STEP]
        recipe = load_recipe(RECIPE, own)
        assert isinstance(recipe, TransformerRecipe)
        with META:
            model = Transformer(TransformerConfig.from_dict(recipe.model or {}))
        write_random_features(cache, model.config)
        processes, stream = Processes(device=META), Stream.open(recipe, device=META)
        network = PlainNetwork(model, recipe, processes)
        drawn = drawn_texts(recipe, stream.features, processes)
        # There is neither autocast nor a generator for tensors without numbers
        training.products = lambda *_: nullcontext()
        BlockDraws._generator = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
        task = FlowTask(recipe, network, [stream], drawn, processes)
        with Launches() as seen:
            task.train(0, task.prepare(0))
    return figures(seen)


def with_gradients(named: Mapping[str, Tensor]) -> None:
    for parameter in named.values():
        parameter.grad = torch.empty_like(parameter)


def figures(seen: Launches) -> dict[str, Any]:
    copies = Counter(seen.host_reads + seen.uploads)
    flying = sum(count for name, count in copies.items() if name.endswith("in flight"))
    return {
        "kernels": seen.count,
        "gigabytes": round(seen.bytes / 1e9, 2),
        "waits": copies.total() - flying,
        "copies_in_flight": flying,
        "megabytes_from_the_host": round(seen.uploaded / 1e6, 2),
    }


def main() -> None:
    argparse.ArgumentParser(description="Kernels of a training step, counted.").parse_args()
    model = network()
    results = {name: of_optimizer(model, name) for name in COUNTED}
    results["average"] = of_average(model)
    results["step"] = of_step()
    for name, found in results.items():
        print(name, found)
    print(json.dumps(results))


if __name__ == "__main__":
    main()

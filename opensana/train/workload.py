"""How much a training step computes, and what its devices can do."""

import torch

from opensana.models.flops import image_tokens, measured_peak, transformer_cost
from opensana.train.engine.parallel import Processes
from opensana.train.monitor.metrics import Workload
from opensana.train.recipe import CachedRecipe, ParallelRecipe
from opensana.transformer.model import TransformerConfig

MEASURED = ("cuda", "mps")
"""Devices whose peak a run measures when it starts: a CPU has better things to do."""


def peak_of(
    recipe: ParallelRecipe, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> float:
    """Operations a second of one device in `dtype`: as the recipe says, else of its own products.

    That is the best of a few large products of matrices, in a fraction of a second. Cards of one
    name differ by clock, power and share (MIG), and none reaches its data sheet.
    """
    if recipe.peak_tflops is not None:
        return recipe.peak_tflops * 1e12
    found = measured_peak(device, dtype)
    if device.type == "cuda":  # a run's own memory is what it reports
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return found


def workload(
    recipe: CachedRecipe, config: TransformerConfig, processes: Processes, *, streams: int = 1
) -> Workload:
    """One step of all processes, for the metrics; operations are counted if the peak is known.

    `streams`: one's own samples, and as many of a prior if there is one.
    """
    samples = recipe.batch * recipe.data.repeat * streams
    device = processes.device
    dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    known = recipe.parallel.peak_tflops is not None or device.type in MEASURED
    peak = peak_of(recipe.parallel, device, dtype) * processes.count if known else 0.0
    flops = transformer_cost(config, samples=1, dtype=torch.float32).flops if peak else 0.0
    tokens = samples * image_tokens(config)
    return Workload(samples, tokens, samples * flops, peak, device)

"""What a training step costs, found without weights: operations, and what the backward pass keeps.

The model is built on torch's `meta` device, where layers have shapes but no numbers. Blocks of the
Linear DiT are alike: one and two of them are measured, the rest is counted.
"""

import re

import torch

from opensana.models.flops import PEAKS, image_tokens, transformer_cost
from opensana.train.engine.parallel import Processes
from opensana.train.monitor.metrics import Workload
from opensana.train.recipe import CachedRecipe, ParallelRecipe
from opensana.transformer.model import TransformerConfig

# What may follow in a name without another peak; a laptop's, a slice's (MIG) and others have one.
SAME_PEAK = r"([- ](SXM\d?|\d+GB|HBM\w+))*"


def known_peak(
    recipe: ParallelRecipe, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> float:
    """Operations a second of one device in `dtype`: as the recipe says, or of a known GPU; else 0.

    A name counts only as a whole: a 4090 Laptop GPU has half of a 4090's.
    """
    if recipe.peak_tflops is not None:
        return recipe.peak_tflops * 1e12
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    for label, peaks in PEAKS.items():
        if re.fullmatch(re.escape(label) + SAME_PEAK, name.removeprefix("NVIDIA ")):
            return peaks.get(dtype, 0.0) * 1e12
    return 0.0


def workload(
    recipe: CachedRecipe, config: TransformerConfig, processes: Processes, *, streams: int = 1
) -> Workload:
    """One step of all processes, for the metrics; operations are counted if the peak is known.

    `streams`: one's own samples, and as many of a prior if there is one.
    """
    samples = recipe.batch * recipe.data.repeat * streams
    dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
    peak = known_peak(recipe.parallel, processes.device, dtype) * processes.count
    flops = transformer_cost(config, samples=1, dtype=torch.float32).flops if peak else 0.0
    tokens = samples * image_tokens(config)
    return Workload(samples, tokens, samples * flops, peak, processes.device)

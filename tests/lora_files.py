"""Small random LoRAs, in the layouts that tools write."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

QKV = ("attn1.to_q", "attn1.to_v", "attn2.to_k")


def write_lora(
    file: Path,
    sides: Mapping[str, tuple[int, int]],
    *,
    seed: int = 1,
    layers: Sequence[str] = QKV,
    rank: int = 2,
    size: float = 0.3,
    prefix: str = "transformer.",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file for the layers whose names end so; `sides` are their outputs and inputs.

    The prefix of diffusers is "transformer.", that of peft "base_model.model.".
    """
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, (outputs, inputs) in sides.items():
        if name.endswith(tuple(layers)):
            for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
                key = f"{prefix}{name}.{part}.weight"
                state[key] = size * torch.randn(shape, generator=draw)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, metadata=dict(metadata or {}))
    return file

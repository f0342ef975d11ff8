"""Which ways to store a model's parts fit a device's memory: what `info --device-memory` shows."""

from functools import cache

import torch
from torch import nn

from opensana.layers.int4 import RANK
from opensana.models.memory import Memory
from opensana.runtime.quantize import Quantization, quantised_layer, quantizable
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer

TEXT_GROUP = 32
"""Channels that share a scale where a text encoder is stored in 8 bits."""
SCHEMES = {
    "as is": None,
    "w8a8, w8": Quantization("w8"),
    "w4": Quantization("w4", RANK),
}


def bytes_in_8_bits(parameters: int) -> int:
    """Of a text encoder: a byte a number, and a scale in float32 for each group."""
    return parameters * (TEXT_GROUP + 4) // TEXT_GROUP


def transformer_bytes(
    network: Transformer, quantization: Quantization | None, dtype: torch.dtype
) -> int:
    """Bytes of a plain network's weights in memory once it is quantised, the rest in `dtype`."""
    held = sum(parameter.numel() for parameter in network.parameters()) * dtype.itemsize
    if quantization is None:
        return held
    for _, _, layer in quantizable(network):
        rows, channels = layer.weight.flatten(1).shape
        made = _matrix_bytes(rows, channels, quantization)
        held += made - rows * channels * dtype.itemsize
    return held


@cache
def _matrix_bytes(rows: int, channels: int, quantization: Quantization) -> int:
    layer = nn.Linear(channels, rows, bias=False, device="meta")
    return sum(x.nbytes for x in quantised_layer(layer, quantization).state_dict().values())


def fitting_schemes(
    config: TransformerConfig,
    memory: Memory,
    *,
    stored: Quantization | None = None,
    autoencoder: int,
    text: int,
    text_in_8_bits: int,
    main: torch.dtype,
    room: int,
) -> list[dict[str, object]]:
    """A row for each scheme and form of the text encoder: bytes of each part, and what fits.

    `autoencoder`, `text` and `text_in_8_bits` are bytes. With --offload text all weights are in
    memory until the prompts are read, and drawing goes on without the text encoder's. A transformer
    that is `stored` in a scheme stays in it.
    """
    forms = (
        {"8 bits": text} if text == text_in_8_bits else {"as is": text, "8 bits": text_in_8_bits}
    )
    with torch.device("meta"):
        network = Transformer(config)
    work = max(memory.denoising, memory.decoding_in_bands)
    rows = []
    for name, quantization in (SCHEMES if stored is None else {stored.scheme: stored}).items():
        transformer = transformer_bytes(network, quantization, main)
        for form, encoder in forms.items():
            weights = transformer + autoencoder + encoder
            offloaded = max(weights, weights - encoder + work)
            fits = "with --offload text" if offloaded <= room else "no"
            rows.append(
                {
                    "transformer": name,
                    "text": form,
                    "transformer_bytes": transformer,
                    "text_bytes": encoder,
                    "autoencoder_bytes": autoencoder,
                    "work_bytes": work,
                    "total_bytes": weights + work,
                    "fits": "yes" if weights + work <= room else fits,
                }
            )
    return rows

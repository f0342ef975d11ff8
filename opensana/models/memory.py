"""Bytes that drawing one picture of the native size takes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.transformer.config import TransformerConfig


@dataclass(frozen=True)
class Memory:
    """Tensors alone, in bytes: Python, torch and a convolution's scratch space come on top."""

    weights: int
    denoising: int
    """What a step takes beside the weights, estimated by its largest layer. A GPU takes both halves
    of guidance at once."""
    decoding: int
    """What decoding at once takes beside the weights: the plan of `autoencoder/plan.py`."""
    decoding_in_bands: int
    """The least that decoding in bands of rows takes instead."""

    @property
    def total(self) -> int:
        """The weights and the hungrier of the two works, which follow one another."""
        return self.weights + max(self.denoising, self.decoding)

    def to_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def memory_needed(
    parameters: Mapping[str, int],
    transformer: TransformerConfig,
    autoencoder: AutoencoderConfig,
    *,
    main: torch.dtype,
    others: torch.dtype,
    device: torch.device,
) -> Memory:
    """For parts of so many `parameters`: the transformer in `main`, all others in `others`."""
    weights = sum(
        count * (main if name == "transformer" else others).itemsize
        for name, count in parameters.items()
    )
    with torch.device("meta"):
        network = Autoencoder(autoencoder).to(others)
    decoding = decoder_chain(network, 1, transformer.sample_size, transformer.sample_size)
    halves = 1 if device.type == "cpu" or transformer.guidance_embeds else 2
    return Memory(
        weights,
        halves * _step_memory(transformer, main),
        decoding.one_band_memory,
        decoding.least_memory,
    )


def _step_memory(config: TransformerConfig, dtype: torch.dtype) -> int:
    """The hungrier layer and the tokens around it.

    Mix-FFN: its two halves, before and after the depthwise convolution. Linear attention: queries,
    keys and values, as they are and in float32, and the attended values in both.
    """
    tokens = (config.sample_size // config.patch_size) ** 2
    mixing = 4 * config.hidden * dtype.itemsize
    attending = 4 * config.width * (dtype.itemsize + torch.float32.itemsize)
    return tokens * (max(mixing, attending) + 4 * config.width * dtype.itemsize)

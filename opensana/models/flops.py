"""Operations and bytes of a network's step, counted, and what devices can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from opensana.autoencoder import Autoencoder
from opensana.transformer.controlnet import Controlled
from opensana.transformer.model import Transformer, TransformerConfig

# The longest text (paper 2.3): what is found with it is an upper bound.
TEXT_TOKENS = 300


# Dense products of well-known devices in 10^12 operations a second, by their data sheets.
PEAKS: dict[str, dict[torch.dtype, float]] = {
    name: {torch.bfloat16: half, torch.float32: single}
    for name, half, single in (
        ("A100", 312.0, 19.5),
        ("A100-PCIE", 312.0, 19.5),
        ("A100 80GB PCIe", 312.0, 19.5),
        ("H100", 989.0, 67.0),
        ("H200", 989.0, 67.0),
        ("L40S", 362.0, 91.6),
        ("B200", 2250.0, 75.0),
        ("GeForce RTX 4090", 165.0, 82.6),
    )
}


# A layer's backward has two products, for its input and its weights, to the forward's one.
BACKWARD = 2


META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """Operations of forward and backward, and bytes kept in between; `block` is one block's share.

    `entry` is what enters a block: all that is kept of it when its inside is computed again.
    """

    flops: float
    kept: int
    block: int = 0
    entry: int = 0
    blocks: int = 0

    @property
    def kept_with_recomputing(self) -> int:
        return self.kept - self.blocks * (self.block - self.entry) + self.block


def transformer_cost(config: TransformerConfig, *, samples: int, dtype: torch.dtype) -> Cost:
    """Of one micro-batch of native size with the longest texts."""
    one, two = (_of_transformer(config, depth, samples, dtype) for depth in (1, 2))
    more, block = config.num_layers - 1, two.kept - one.kept
    return Cost(
        flops=one.flops + more * (two.flops - one.flops),
        kept=one.kept + more * block,
        block=block,
        entry=samples * image_tokens(config) * config.width * dtype.itemsize,
        blocks=config.num_layers,
    )


def controlnet_cost(network: Controlled, *, samples: int) -> Cost:
    """The same of a ControlNet with its frozen transformer, on the meta device.

    The transformer's weights need no gradient, which saves one product of three.
    """
    config, dtype = network.config, network.transformer.dtype
    latents, states, timesteps = _inputs(config, samples)

    def forward() -> Tensor:
        return network(latents, timesteps, states, None, latents)

    base = transformer_cost(config, samples=samples, dtype=dtype).flops
    whole = measured(network, forward)
    return replace(whole, flops=whole.flops - base / (1 + BACKWARD))


def autoencoder_cost(model: Autoencoder, *, samples: int, crop: int) -> Cost:
    """Of one batch of crops; `model` is on the meta device, and what it freezes costs less."""
    pixels = torch.empty(samples, 3, crop, crop, device=META)
    return measured(model, lambda: model(pixels))


def image_tokens(config: TransformerConfig) -> int:
    """Tokens of a picture of the native size."""
    return (config.sample_size // config.patch_size) ** 2


def _of_transformer(
    config: TransformerConfig, depth: int, samples: int, dtype: torch.dtype
) -> Cost:
    latents, states, timesteps = _inputs(config, samples)
    guidance = timesteps if config.guidance_embeds else None
    with META:
        model = Transformer(replace(config, num_layers=depth)).to(dtype)
        return measured(model, lambda: model(latents, timesteps, states, guidance=guidance))


def _inputs(config: TransformerConfig, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of the native size, states of the longest texts, timesteps; none has numbers."""
    side = config.sample_size
    with META:
        return (
            torch.empty(samples, config.in_channels, side, side),
            torch.empty(samples, TEXT_TOKENS, config.caption_channels),
            torch.empty(samples),
        )


def measured(model: nn.Module, forward: Callable[[], Tensor]) -> Cost:
    """Run forward on shapes alone; torch miscounts the backward of grouped convolutions."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()._cdata
        if place not in weights:
            kept[place] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda kept: kept):
        forward()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return Cost(flops=float((1 + BACKWARD) * counter.get_total_flops()), kept=size)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a product of two random matrices, which grow until it takes a while.

    Constants would be multiplied faster than data, and a small product is mostly its launch.
    """
    side = SHORTEST_SIDE
    while (seconds := _product_time(device, dtype, side)) < LONG_PRODUCT and side < LONGEST_SIDE:
        side *= 2
    return 2 * side**3 / seconds


# A product must outlast its launch by far to be measured, and fit into any memory.
LONG_PRODUCT = 0.01  # seconds


SHORTEST_SIDE, LONGEST_SIDE = 256, 16384


def _product_time(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Seconds of one product with `side` rows and columns, the best of a few."""
    generator = torch.Generator(device).manual_seed(0)
    one, other = torch.randn(2, side, side, device=device, dtype=dtype, generator=generator)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        float((one @ other)[0, 0])  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds)

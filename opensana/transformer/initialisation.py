"""The weights that a training run of the Linear DiT starts from (paper 2.2)."""

import torch
from torch import Tensor, nn

from opensana.layers.norm import RMSNorm
from opensana.transformer.conditioning import TimeGuidanceEmbedding
from opensana.transformer.model import Transformer

CONDITIONING_STD = 0.02
CAPTION_NORM_WEIGHT = 0.01


@torch.no_grad()
def initialise(
    model: Transformer, generator: torch.Generator, *, caption_norm: float = CAPTION_NORM_WEIGHT
) -> None:
    """Fill all parameters anew: small conditioning, Xavier-uniform linear layers.

    `caption_norm` is the weight of the norm behind the caption projection: small as published,
    for the stable training of large models; 1 lets a small one listen to its text at once.
    Numbers are drawn on the generator's device in float32: one seed, the same weights anywhere.
    """
    draw = _Draw(generator)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            draw.xavier(module)
        elif isinstance(module, nn.Conv2d):
            draw.convolution(module)
        elif isinstance(module, RMSNorm | nn.LayerNorm) and module.weight is not None:
            nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm):
                nn.init.zeros_(module.bias)
    draw.xavier_weight(model.patch_embed.proj.weight)
    _initialise_conditioning(model, draw)
    nn.init.constant_(model.caption_norm.weight, caption_norm)
    for module in (model, *model.blocks):
        draw.normal(module.scale_shift_table, model.config.width**-0.5)


def _initialise_conditioning(model: Transformer, draw: "_Draw") -> None:
    time, caption = model.time_embed.timestep_embedder, model.caption_projection
    if isinstance(model.time_embed, TimeGuidanceEmbedding):
        guidance = model.time_embed.guidance_embedder
        draw.normal(guidance.linear_1.weight, CONDITIONING_STD)
        nn.init.zeros_(guidance.linear_2.weight)
    for layer in (time.linear_1, time.linear_2, caption.linear_1, caption.linear_2):
        draw.normal(layer.weight, CONDITIONING_STD)
    draw.normal(model.time_embed.linear.weight, CONDITIONING_STD)


class _Draw:
    """Random fillings of parameters from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def normal(self, parameter: Tensor, std: float) -> None:
        sample = torch.empty(parameter.shape, device=self.generator.device)
        parameter.copy_(sample.normal_(0, std, generator=self.generator))

    def uniform(self, parameter: Tensor, bound: float) -> None:
        sample = torch.empty(parameter.shape, device=self.generator.device)
        parameter.copy_(sample.uniform_(-bound, bound, generator=self.generator))

    def xavier_weight(self, weight: Tensor) -> None:
        fan_in, fan_out = weight[0].numel(), weight.shape[0]
        self.uniform(weight, (6 / (fan_in + fan_out)) ** 0.5)

    def xavier(self, layer: nn.Linear) -> None:
        self.xavier_weight(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)

    def convolution(self, layer: nn.Conv2d) -> None:
        bound = layer.weight[0].numel() ** -0.5
        self.uniform(layer.weight, bound)
        if layer.bias is not None:
            self.uniform(layer.bias, bound)

"""Random initialisation of the Linear DiT, as in the official code."""

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
    """Initialise all parameters: Xavier-uniform linear layers, small conditioning.

    `caption_norm` is the weight of the norm after the caption projection: 0.01 as published, for
    stable training of large models (paper 2.3); with 1 a small model uses its text at once.
    Drawn in float32 on the generator's device: a seed gives the same weights everywhere.
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
    time, caption = model.time_embed.timestep_embedder, model.caption_projection
    if isinstance(model.time_embed, TimeGuidanceEmbedding):
        guidance = model.time_embed.guidance_embedder
        draw.normal(guidance.linear_1.weight, CONDITIONING_STD)
        nn.init.zeros_(guidance.linear_2.weight)
    for layer in (time.linear_1, time.linear_2, caption.linear_1, caption.linear_2):
        draw.normal(layer.weight, CONDITIONING_STD)
    draw.normal(model.time_embed.linear.weight, CONDITIONING_STD)
    nn.init.constant_(model.caption_norm.weight, caption_norm)
    for module in (model, *model.blocks):
        draw.normal(module.scale_shift_table, model.config.width**-0.5)


class _Draw:
    """Fills parameters with random numbers from one generator."""

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

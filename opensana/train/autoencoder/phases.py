"""Which layers each phase of the autoencoder trains (DC-AE paper, figure 6)."""

from torch import nn

from opensana.autoencoder import AutoencoderConfig
from opensana.train.recipe import AutoencoderRecipe


def phase_prefixes(recipe: AutoencoderRecipe, config: AutoencoderConfig) -> tuple[str, ...]:
    """The beginnings of the names of the parameters that a phase trains."""
    last = len(config.encoder_block_out_channels) - 1
    if recipe.phase == "latent":
        middle = (f"encoder.down_blocks.{last}.", "encoder.conv_out.")
        return (*middle, "decoder.conv_in.", f"decoder.up_blocks.{last}.")
    if recipe.phase == "refine":
        stages = [f"decoder.up_blocks.{stage}." for stage in range(recipe.refine_stages)]
        return (*stages, "decoder.norm_out.", "decoder.conv_out.")
    return ("decoder.",) if recipe.phase == "decoder" else ("",)


def freeze_all_but(model: nn.Module, prefixes: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Freeze every parameter without such a prefix; returns those that train, by name.

    Modules that are frozen whole keep their running statistics, if they have any.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    for module in model.modules():
        module.train(any(parameter.requires_grad for parameter in module.parameters()))
    return {name: p for name, p in model.named_parameters() if p.requires_grad}

"""The PatchGAN against the decoder: its optimiser and its losses (DC-AE paper 3.3, phase 3)."""

import torch
from torch import Tensor

from opensana.train.autoencoder.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from opensana.train.engine.parallel import Processes
from opensana.train.engine.randomness import drawn_by
from opensana.train.optim.optimizers import Optimizers
from opensana.train.recipe import AutoencoderRecipe, OptimizerRecipe


class PatchGan:
    """The discriminator, its optimiser, and the loss that the decoder gets from it."""

    def __init__(self, recipe: AutoencoderRecipe, processes: Processes) -> None:
        self.processes = processes
        options, self.weight = recipe.discriminator, recipe.loss.gan
        self.adaptive = recipe.loss.gan_adaptive
        with drawn_by(recipe.seed, "discriminator"):
            self.discriminator = PatchDiscriminator(width=options.width, depth=options.depth)
        self.discriminator.to(processes.device)
        self.optimizer = Optimizers(
            dict(self.discriminator.named_parameters()),
            OptimizerRecipe(lr=options.lr, betas=options.betas),
        )

    def decoder_loss(
        self, output: Tensor, reconstruction: Tensor, layer: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The adversarial term [], weighted (VQGAN, arXiv 2012.09841, equation 7).

        With it, for the metrics, its plain value and its weight.
        """
        term = generator_loss(self.discriminator(output))
        weight = torch.full_like(term.detach(), self.weight)
        if self.adaptive:
            weight = weight * adaptive_weight(reconstruction, term, layer)
            weight = self.processes.average(weight)
        return weight * term, {"gan": term, "gan_weight": weight}

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss for pictures [B, 3, H, W] of the data and reconstructions."""
        return discriminator_loss(self.discriminator(real), self.discriminator(fake))

    def backward(self, loss: Tensor) -> None:
        """The gradients of the discriminator's loss, of all processes."""
        self.optimizer.zero_grad()
        loss.backward()
        self.processes.average_gradients(self.optimizer.parameters)

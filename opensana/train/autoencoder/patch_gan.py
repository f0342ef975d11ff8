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
        self, output: Tensor, reconstruction: Tensor, layer: Tensor, values: dict[str, float]
    ) -> Tensor:
        """The adversarial term, weighted (VQGAN, arXiv 2012.09841, equation 7).

        Its plain value and its weight are added to `values`.
        """
        term = generator_loss(self.discriminator(output))
        weight = torch.tensor(self.weight)
        if self.adaptive:
            weight = weight * adaptive_weight(reconstruction, term, layer).cpu()
            weight = self.processes.all_gather(weight[None]).mean()
        values |= {"gan": float(term.detach()), "gan_weight": float(weight)}
        return weight * term

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss for pictures [B, 3, H, W] of the data and reconstructions."""
        return discriminator_loss(self.discriminator(real), self.discriminator(fake))

    def step(self, loss: Tensor, *, lr: float) -> float:
        """One step of the discriminator down its loss, which is returned."""
        self.optimizer.zero_grad()
        loss.backward()
        self.processes.average_gradients(self.optimizer.parameters)
        self.optimizer.step(lr=lr)
        return float(loss.detach())

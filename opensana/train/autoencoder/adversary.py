"""The PatchGAN against the decoder: its optimiser, and what it says (DC-AE paper 3.3, phase 3)."""

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
from opensana.train.recipe import (
    AutoencoderRecipe,
    OptimizerRecipe,
)


class Adversary:
    """The discriminator, its optimiser, and what it says to the decoder."""

    def __init__(self, recipe: AutoencoderRecipe, processes: Processes) -> None:
        self.processes = processes
        options, self.weight = recipe.discriminator, recipe.loss.gan
        self.adaptive = recipe.loss.gan_adaptive
        with drawn_by(recipe.seed, "discriminator"):
            self.judge = PatchDiscriminator(width=options.width, depth=options.depth)
        self.judge.to(processes.device)
        self.optimizer = Optimizers(
            dict(self.judge.named_parameters()),
            OptimizerRecipe(lr=options.lr, betas=options.betas),
        )

    def push(
        self, output: Tensor, reconstruction: Tensor, layer: Tensor, values: dict[str, float]
    ) -> Tensor:
        """The weighted adversarial term; its plain value and weight are noted in `values`."""
        term = generator_loss(self.judge(output))
        weight = torch.tensor(self.weight)
        if self.adaptive:
            weight = weight * adaptive_weight(reconstruction, term, layer).cpu()
            weight = self.processes.gathered(weight[None]).mean()
        values |= {"gan": float(term.detach()), "gan_weight": float(weight)}
        return weight * term

    def judged(self, real: Tensor, fake: Tensor) -> Tensor:
        """The discriminator's loss."""
        return discriminator_loss(self.judge(real), self.judge(fake))

    def learn(self, loss: Tensor, *, lr: float) -> float:
        """One step of the discriminator down its loss, which is returned."""
        self.optimizer.zero_grad()
        loss.backward()
        self.processes.average_gradients(self.optimizer.parameters)
        self.optimizer.step(lr=lr)
        return float(loss.detach())

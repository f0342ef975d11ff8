"""Training a ControlNet: flow matching through a frozen transformer (arXiv 2302.05543).

All is as in the transformer's training, but the transformer that the recipe names stays as it is,
copies of its first blocks train, and each sample brings the latent of a condition.
"""

from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from opensana.features.conditions import Conditions
from opensana.flow.guidance import Velocity
from opensana.models.find import find_transformer
from opensana.models.load import load_controlnet, load_transformer
from opensana.train.engine.loop import drive
from opensana.train.engine.parallel import ALONE, Processes
from opensana.train.recipe import ControlNetRecipe
from opensana.train.transformer.batches import SHOWN, FlowBatch, likeliest
from opensana.train.transformer.drawing import Drawn
from opensana.train.transformer.initial import check_fit, trainable
from opensana.train.transformer.task import TransformerTask
from opensana.transformer.controlnet import Controlled, ControlNet


def train_controlnet(recipe: ControlNetRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, ControlNetTask, draw_every=recipe.samples.every)


class ControlNetTask(TransformerTask):
    """The model is the ControlNet alone: its average is what is measured, drawn and exported."""

    part = "controlnet"

    def __init__(self, recipe: ControlNetRecipe, processes: Processes = ALONE) -> None:
        self.control_recipe = recipe
        super().__init__(recipe, processes)
        self.conditions = Conditions.open(recipe.data.condition, self.features)
        self.fixed = [self._conditioned(batch) for batch in self.fixed]
        self.shown = self._shown()
        captions = [likeliest(self.features, self.rule, sample) for sample in self.shown]
        self.drawn = Drawn.captions(captions, self.features.texts, seed=recipe.samples.seed)

    def initial(self) -> ControlNet:
        recipe = self.control_recipe
        assert recipe.initial is not None
        self.base = trainable(load_transformer(find_transformer(recipe.initial)))
        self.base.requires_grad_(False).eval().to(self.processes.device)
        check_fit(self.base.config, self.features, recipe.data.folder)
        if recipe.control is None:
            control = ControlNet.of(self.base, recipe.blocks)
        else:
            control = trainable(load_controlnet(recipe.control, self.base.config))
        choose_trained(control.train())
        return control.to(self.processes.device)

    def network_of(self, model: nn.Module) -> Controlled:
        assert isinstance(model, ControlNet)
        return Controlled(self.base, model)

    def prepare(self, step: int) -> list[FlowBatch]:
        return [self._conditioned(batch) for batch in super().prepare(step)]

    def towards(self, batch: FlowBatch) -> Velocity:
        assert batch.condition is not None
        repeat = self.recipe.data.repeat
        states, mask, condition = (
            part.repeat_interleave(repeat, dim=0)
            for part in (batch.states, batch.mask, batch.condition)
        )
        if not self.processes.alone:
            return lambda x, timestep: self.engine(x, timestep, states, mask, condition)
        prepared = self.network_of(self.model).prepare(states, mask, condition)
        return lambda x, timestep: self.velocity(x, timestep, prepared)

    def averaged_towards(
        self, states: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Velocity:
        assert condition is not None
        network = self.network_of(self.average.module)
        prepared = network.prepare(states, mask, condition)
        return lambda x, timestep: network.velocity(x, timestep, prepared)

    def drawn_condition(self) -> Tensor:
        return self.conditions.batch(self.shown).to(self.processes.device)

    def _conditioned(self, batch: FlowBatch) -> FlowBatch:
        return replace(batch, condition=self.conditions.batch(batch.samples))

    def _shown(self) -> list[int]:
        """Evenly spaced samples of the commonest shape: a grid of pictures has one."""
        buckets = self.features.buckets
        places = np.flatnonzero(buckets == np.bincount(buckets).argmax())
        chosen = np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int)
        return [int(place) for place in places[chosen]]


def choose_trained(control: ControlNet) -> None:
    """Gradients for what training changes, and for nothing else."""
    control.requires_grad_(False)
    for module in control.trained:
        module.requires_grad_(True)

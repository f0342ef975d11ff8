"""Training a ControlNet: flow matching through a frozen transformer (arXiv 2302.05543).

All is as in the transformer's training, but the transformer that the recipe names stays as it is,
copies of its first blocks train, and each sample brings the latent of a condition (equation 2;
the loss is equation 5 with a velocity in place of the noise).
"""

from dataclasses import replace

import numpy as np
from torch import Tensor

from opensana.features.conditions import Conditions
from opensana.flow.guidance import Velocity
from opensana.models.find import find_transformer
from opensana.models.load import load_controlnet, load_transformer
from opensana.train.checkpoints.export import Export
from opensana.train.engine.ema import Average
from opensana.train.engine.loop import drive
from opensana.train.engine.parallel import ALONE, Processes
from opensana.train.recipe import ControlNetRecipe
from opensana.train.transformer.batches import SHOWN, FlowBatch, Stream, likeliest
from opensana.train.transformer.drawing import Drawn
from opensana.train.transformer.initial import check_fit, trainable
from opensana.train.transformer.networks import exported, in_training, module_parts
from opensana.train.transformer.task import FlowTask
from opensana.transformer.controlnet import Controlled, ControlNet
from opensana.transformer.model import Transformer


def train_controlnet(recipe: ControlNetRecipe) -> None:
    """Run to the last step; the same call resumes."""
    drive(recipe, controlnet_task, draw_every=recipe.samples.every)


def controlnet_task(recipe: ControlNetRecipe, processes: Processes = ALONE) -> FlowTask:
    """Flow matching of a ControlNet; what is drawn follows conditions of the cache."""
    stream = Stream.open(recipe, device=processes.device)
    base = trainable(load_transformer(find_transformer(recipe.initial))).requires_grad_(False)
    check_fit(base.config, stream.features, recipe.data.folder)
    if recipe.control is None:
        control = ControlNet.of(base, recipe.blocks)
    else:
        control = trainable(load_controlnet(recipe.control, base.config))
    network = ControlledNetwork(base.eval(), control.train(), recipe, processes)
    conditions = Conditions.open(recipe.data.condition, stream.features)
    stream = replace(stream, conditions=conditions)
    drawn = drawn_samples(recipe, stream, conditions)
    return FlowTask(recipe, network, [stream], drawn, processes)


class ControlledNetwork:
    """A ControlNet on a frozen transformer: it alone trains, is saved and is exported."""

    def __init__(
        self, base: Transformer, control: ControlNet, recipe: ControlNetRecipe, processes: Processes
    ) -> None:
        choose_trained(control)
        self.recipe, self.processes = recipe, processes
        self.base, self.trained = base.to(processes.device), control.to(processes.device)
        self.average = Average(self.trained, decay=recipe.ema)
        self.network = Controlled(self.base, self.trained)
        self.averaged = Controlled(self.base, self.average.module)
        self.engine, self.velocity = in_training(self.network, recipe, processes)
        self.parts = module_parts(self.trained, self.average)

    def velocity_for(self, batch: FlowBatch) -> Velocity:
        assert batch.condition is not None
        states, mask, condition = (
            part.repeat_interleave(batch.repeat, dim=0)
            for part in (batch.states, batch.mask, batch.condition)
        )
        if not self.processes.alone:
            return lambda x, timestep: self.engine(x, timestep, states, mask, condition)
        prepared = self.network.prepare(states, mask, condition)
        return lambda x, timestep: self.velocity(x, timestep, prepared)

    def averaged_velocity(
        self, states: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Velocity:
        assert condition is not None
        prepared = self.averaged.prepare(states, mask, condition)
        return lambda x, timestep: self.averaged.velocity(x, timestep, prepared)

    def export(self) -> Export:
        return exported("controlnet", self.average, self.recipe, self.processes)


def choose_trained(control: ControlNet) -> None:
    """Gradients for what training changes, and for nothing else."""
    control.requires_grad_(False)
    for module in control.trained:
        module.requires_grad_(True)


def drawn_samples(recipe: ControlNetRecipe, stream: Stream, conditions: Conditions) -> Drawn:
    """Evenly spaced samples of the commonest shape: a grid of pictures has one."""
    features = stream.features
    alike = np.flatnonzero(features.buckets == np.bincount(features.buckets).argmax())
    chosen = np.linspace(0, len(alike) - 1, min(SHOWN, len(alike))).astype(int)
    samples = [int(sample) for sample in alike[chosen]]
    captions = [likeliest(features, recipe.data.rule, sample) for sample in samples]
    condition = conditions.batch(samples).float()
    return Drawn.captions(captions, features.texts, seed=recipe.samples.seed, condition=condition)

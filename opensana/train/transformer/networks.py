"""What flow matching trains, as small objects: weights, their EMA, velocities, and the export.

A task knows `FlowNetwork` alone. The transformer itself is here, adapters on it are in `lora.py`,
a ControlNet beside it is in `controlnet.py`. `tests/train/test_transformer.py` tests this one.

B samples, R timesteps drawn for each, C channels, h w latent size, N text tokens, D text channels.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from opensana.flow.guidance import Velocity
from opensana.train.checkpoints.export import Export
from opensana.train.engine.compilation import compiled
from opensana.train.engine.ema import Average
from opensana.train.engine.parallel import Processes, distributed, shard, unsharded
from opensana.train.engine.task import ModuleState, Part
from opensana.train.recipe import CachedRecipe
from opensana.train.transformer.batches import FlowBatch
from opensana.transformer.controlnet import Controlled
from opensana.transformer.model import PreparedText, Stack, Transformer


class FlowNetwork(Protocol):
    """Weights that train, and their EMA: what is measured, drawn and exported.

    `trained` is the module that trains, `average` its EMA weights; `engine` is what DDP or FSDP
    wraps; `parts` are what a checkpoint holds of both, "model" and "ema".
    """

    @property
    def trained(self) -> Stack: ...

    @property
    def average(self) -> Average[Any]: ...

    @property
    def engine(self) -> nn.Module: ...

    @property
    def parts(self) -> Mapping[str, Part]: ...

    def velocity_for(self, batch: FlowBatch) -> Velocity:
        """The velocity in training, for the texts of this batch: of x [B * R, C, h, w]."""
        ...

    def averaged_velocity(
        self, states: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Velocity:
        """The EMA weights' velocity for texts [B, N, D]; all processes compute the same."""
        ...

    def export(self) -> Export: ...


class PlainNetwork:
    """The transformer, all of it."""

    def __init__(self, model: Transformer, recipe: CachedRecipe, processes: Processes) -> None:
        self.recipe, self.processes = recipe, processes
        self.trained = model.to(processes.device)
        self.average = Average(self.trained, decay=recipe.ema)
        self.engine, self.velocity = in_training(self.trained, recipe, processes)
        if processes.sharded:
            shard(self.average.module)
        self.parts = module_parts(self.trained, self.average)

    def velocity_for(self, batch: FlowBatch) -> Velocity:
        """Velocity for this batch.

        With one process the text is prepared once and reused for all R timesteps; under DDP or FSDP
        the call must go through `forward`.
        """
        if self.processes.alone:
            text = repeated(self.trained.prepare_text(batch.states, batch.mask), batch.repeat)
            return lambda x, timestep: self.velocity(x, timestep, text)
        states, mask = (
            part.repeat_interleave(batch.repeat, dim=0) for part in (batch.states, batch.mask)
        )
        return lambda x, timestep: self.engine(x, timestep, states, mask)

    def averaged_velocity(
        self, states: Tensor, mask: Tensor, condition: Tensor | None = None
    ) -> Velocity:
        model = self.average.module
        if self.processes.sharded:
            return lambda x, timestep: model(x, timestep, states, mask)
        text = model.prepare_text(states, mask)
        return lambda x, timestep: model.velocity(x, timestep, text)

    def export(self) -> Export:
        return exported("transformer", self.average, self.recipe, self.processes)


def exported(
    part: str, average: Average[Any], recipe: CachedRecipe, processes: Processes
) -> Export:
    """The EMA weights of a network in the published layout, in the run's export folder."""
    state = unsharded(average.module.state_dict(), processes)
    return Export(Path(recipe.run) / "export" / part, average.module.config.to_dict(), state)


def in_training(
    network: Transformer | Controlled, recipe: CachedRecipe, processes: Processes
) -> tuple[nn.Module, Callable[..., Tensor]]:
    """What trains in many processes, called by `forward`, and in one, by `velocity`."""
    half = recipe.dtype == "bfloat16"
    engine = distributed(network, recipe.parallel, processes, half=half, compiled=recipe.compile)
    return engine, compiled(network.velocity) if recipe.compile else network.velocity


def module_parts(trained: Stack, average: Average[Any]) -> dict[str, Part]:
    """All of a network's weights as parts of a checkpoint."""
    return {"model": ModuleState(trained), "ema": ModuleState(average.module)}


def repeated(text: PreparedText, repeat: int) -> PreparedText:
    """Each prompt's keys and values `repeat` times in a row."""
    if repeat == 1:
        return text
    blocks = tuple(
        type(block)(*(part.repeat_interleave(repeat, dim=0) for part in block))
        for block in text.separate
    )
    mask = None if text.mask is None else text.mask.repeat_interleave(repeat, dim=0)
    return PreparedText(blocks, mask)

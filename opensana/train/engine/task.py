"""What a kind of training is made of: the parts that are saved, and what the loop asks of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from opensana.errors import CheckpointError
from opensana.train.checkpoints.export import Export
from opensana.train.engine.figures import Figures
from opensana.train.engine.shards import resharded
from opensana.train.monitor.metrics import Workload


class Part(Protocol):
    """Something a checkpoint holds as named tensors."""

    def state_tensors(self) -> dict[str, Tensor]: ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class ModuleState:
    """A module as a part of a checkpoint; values are copied in, so memory layouts stay."""

    module: nn.Module

    def state_tensors(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        ours = self.module.state_dict()
        try:
            state = {
                name: resharded(tensors, name, ours[name]) if name in ours else tensors[name]
                for name in tensors
            }
            self.module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                "the run folder's checkpoint does not fit this recipe's model; choose another"
                f" `run` folder or the recipe it was made with ({str(error).splitlines()[-1]})"
            ) from error


class Task(Protocol):
    """One kind of training. `prepare` must depend on the step and the process alone.

    All processes call all methods; the first one writes pictures.
    """

    @property
    def parts(self) -> Mapping[str, Part]: ...

    @property
    def work(self) -> Workload: ...

    def prepare(self, step: int) -> Any: ...

    def train(self, step: int, batch: Any) -> Figures: ...

    def evaluate(self) -> dict[str, float]: ...

    def draw(self, step: int) -> None: ...

    def export(self) -> Export: ...

"""Sketch: one picture between two steps, with the solver that draws it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from opensana.drawing.job import Job
from opensana.drawing.solving import Prepared
from opensana.errors import OpensanaError
from opensana.flow.guidance import Velocity
from opensana.flow.path import to_x0
from opensana.flow.solvers import Steps
from opensana.flow.timesteps import TRAIN_LEVELS
from opensana.pipeline import Sana
from opensana.serve.painting.merged import Choices


@dataclass(eq=False)
class Given:
    """The velocity of one text: the row of the last batch."""

    row: Tensor | None = None

    def __call__(self, x: Tensor, timestep: Tensor) -> Tensor:
        assert self.row is not None
        return self.row


@dataclass(eq=False)
class Sketch:
    """One picture between two steps."""

    sana: Sana
    job: Job
    loras: Choices
    index: int
    texts: Sequence[Prepared]
    given: list[Given]
    velocity: Velocity
    steps: Steps
    asked: tuple[Tensor, Tensor]
    """The latent [1, C, h, w] and timestep at which the solver waits for its velocity."""
    step: int = 0
    latent: Tensor | None = None
    """Once all steps are done."""
    x0: Tensor | None = field(default=None, repr=False)
    """The picture as the last step foresaw it."""

    def advance(self) -> Exception | None:
        """Send the solver its velocity, which has been given; what went wrong."""
        (x, timestep) = self.asked
        v = self.velocity(x, timestep)
        sigma = timestep if self.job.solver == "scm" else timestep / TRAIN_LEVELS
        self.x0 = to_x0(x, v, sigma)
        self.step += 1
        try:
            self.asked = self.steps.send(v)
        except StopIteration as end:
            self.latent = end.value
        except OpensanaError as error:
            return error
        return None

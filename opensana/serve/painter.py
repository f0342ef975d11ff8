"""Painter: what the worker is given to draw with. A model is one; tests pass one that paints."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from PIL import Image

from opensana.drawing.picture import Picture
from opensana.request import Request
from opensana.serve.jobs.order import LoraChoice, Order


@dataclass(frozen=True)
class Plan:
    """An order with everything decided."""

    request: Request
    """With nothing left out."""
    seeds: tuple[int, ...]
    """One a picture."""
    size: tuple[int, int]
    """Width and height of the pictures."""
    lane: Hashable
    """Pictures of one lane can take a step together: one shape, one network."""
    steps: int
    """That each picture takes."""
    work: int
    """Of one step of one picture: its pixels, twice with guidance."""
    loras: tuple[LoraChoice, ...] = ()
    """Merged for it, each with its digest."""
    notes: tuple[str, ...] = ()
    """What the user should know."""
    details: Any = None
    """What the painter itself needs."""

    @property
    def total_work(self) -> int:
        """Pixels x steps of all pictures."""
        return self.work * self.steps * len(self.seeds)


class Canvas(Protocol):
    """One picture between two steps."""

    @property
    def step(self) -> int:
        """How many steps it has taken."""
        ...


Sheet = TypeVar("Sheet", bound=Canvas)


class Planner(Protocol):
    """Knows what can be drawn, on any thread, without the networks."""

    def about(self) -> dict[str, Any]:
        """The model's part of the capabilities."""
        ...

    def refresh(self) -> None:
        """List anew what requests may name."""
        ...

    def plan(self, order: Order) -> Plan:
        """Everything decided; RequestError."""
        ...


class Painter(Planner, Protocol[Sheet]):
    """Draws pictures step by step, on the worker's thread alone."""

    def ready(self, plan: Plan) -> None:
        """Have the network of a plan's lane at hand, which may take longer than a step."""
        ...

    def open(self, wanted: Sequence[tuple[Plan, int]]) -> Sequence[Sheet]:
        """Pictures of one lane, each the plan's of that index, before their first step."""
        ...

    def step(self, canvases: Sequence[Sheet]) -> Sequence[Exception | None]:
        """One step of each, all of one lane; what went wrong with which of them."""
        ...

    def finish(self, canvases: Sequence[Sheet]) -> Sequence[Picture]:
        """The pictures of one lane, all steps done."""
        ...

    def preview(self, canvas: Sheet) -> Image.Image | None:
        """What the picture looks like so far, small; None before the first step."""
        ...

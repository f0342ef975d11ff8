"""Several pictures of each prompt of a list, drawn prompt by prompt; what is there stays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opensana.errors import RequestError
from opensana.evaluate.emoji.nearest import drawer
from opensana.evaluate.folder import spread
from opensana.pictures.sheet import grid
from opensana.pipeline import Sana
from opensana.workers.progress import progress


@dataclass(frozen=True)
class Options:
    """What the pictures depend on; a folder that was begun with others is refused."""

    model: str
    prompts: str
    images: int = 4
    """Of each prompt."""
    limit: int | None = None
    size: int | None = None
    steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model:
            raise RequestError("name a model that draws")
        if min(self.images, 1 if self.limit is None else self.limit) < 1:
            raise RequestError(
                f"images and limit must be 1 or more, got {self.images}, {self.limit}"
            )

    def rows(self, count: int) -> list[int]:
        """Which of so many prompts: at most `limit`, evenly spaced."""
        return spread(count, count if self.limit is None else self.limit)

    def seeds(self, row: int) -> list[int]:
        """Of a prompt's pictures: its place in the whole list counts, not in what was chosen."""
        return [self.seed + row * self.images + number for number in range(self.images)]


def draw_missing(
    options: Options,
    prompts: Sequence[str],
    rows: Sequence[int],
    missing: Callable[[int], bool],
    save: Callable[[int, list[Image.Image]], None],
    *,
    device: str = "auto",
) -> None:
    """Draw the pictures of each chosen prompt that is missing, and hand them to `save`."""
    left = [row for row in rows if missing(row)]
    if not left:
        return
    model = Sana.load(options.model, device=device)
    draw = drawer(model, steps=options.steps, size=options.size)
    report = progress("prompts drawn")
    for done, row in enumerate(left, 1):
        save(row, draw([prompts[row]] * options.images, options.seeds(row)))
        report(done, len(left))


def tiled(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side, without a margin."""
    return grid(np.stack([np.asarray(picture) for picture in pictures]), columns=columns)

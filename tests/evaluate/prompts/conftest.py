"""A model that draws a colour for each seed."""

from collections.abc import Sequence

import pytest
from PIL import Image

SIDE = 16


class Drawn:
    """The prompts and seeds that were drawn; a picture's red is its seed."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.fails_at: int | None = None

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        if self.fails_at is not None and len(self.asked) >= self.fails_at:
            raise KeyboardInterrupt
        self.asked += zip(prompts, seeds, strict=True)
        return [Image.new("RGB", (SIDE, SIDE), (seed % 256, 7, 7)) for seed in seeds]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    found = Drawn()
    where = "opensana.evaluate.prompts.drawing"
    monkeypatch.setattr(f"{where}.Sana.load", lambda name, device: name)
    monkeypatch.setattr(f"{where}.drawer", lambda model, steps, size: found)
    return found

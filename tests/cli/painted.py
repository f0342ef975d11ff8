"""A stand-in model, and what the tests of the command line ask of a run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensana.cli import main
from opensana.drawing.inputs import Inputs, read_inputs
from opensana.drawing.picture import Picture
from opensana.request import Request, seeds_from

ROOT = Path(__file__).resolve().parent.parent.parent


RANDOM = 1234567


class PaintedSana:
    """Paints one colour a seed instead of drawing."""

    loads: list[dict[str, Any]]
    requests: list[Request]

    def __init__(self) -> None:
        self.loads, self.requests = [], []
        self.read: list[tuple[list[str], list[str]]] = []
        self.provenance: dict[str, str] = {}
        self.failure: BaseException | None = None
        self.painted_before_failure = 0

    def load(self, model: str, **options: Any) -> "PaintedSana":
        self.loads.append({"model": model} | options)
        return self

    def drop_text_encoder(self, prompts: list[str], plain: list[str]) -> None:
        assert not self.requests
        self.read.append((prompts, plain))

    def draw(
        self,
        request: Request,
        *,
        on_step: Callable[[int, int, Any], None],
        notice: Callable[[str], None],
        image: Image.Image | None,
        mask: Image.Image | None,
        control_image: Image.Image | None = None,
        control_scale: float = 1.0,
    ) -> Iterator[Picture]:
        self.requests.append(request)
        inputs = Inputs(image=image, mask=mask)
        init_image, _ = read_inputs(inputs, request, controlnet=False, notice=notice)
        self.provenance = init_image.provenance if init_image else {}
        if len(request.prompt) > 100:
            notice("the prompt is too long")
        steps = 20 if request.steps is None else request.steps
        for step in range(steps):
            on_step(step, steps, None)
        whole = replace(
            request,
            seed=RANDOM if request.seed is None else request.seed,
            width=request.width or 64,
            height=request.height or 64,
            steps=steps,
            guidance=4.5 if request.guidance is None else request.guidance,
        )
        for number, seed in enumerate(seeds_from(whole.seed or 0, whole.images)):
            if self.failure is not None and number == self.painted_before_failure:
                raise self.failure
            yield self.paint(whole, seed)

    def paint(self, request: Request, seed: int) -> Picture:
        image = Image.new("RGB", (request.width or 64, request.height or 64), (seed % 256, 0, 0))
        own = replace(request, seed=seed, images=1)
        return Picture(image, own, model="painted", provenance=self.provenance)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command line that asks for something wrong."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())

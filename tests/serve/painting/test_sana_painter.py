"""Pictures in mixed batches are those of the pipeline, whatever company they have.

Also tests `serve/painter.py`, `serve/painting/sketch.py`, `serve/painting/texts.py`,
`serve/painting/previews.py`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from opensana import Request, Sana
from opensana.drawing.picture import Picture
from opensana.serve.jobs.order import Order
from opensana.serve.painting.sana_painter import SanaPainter, Sketch
from tests import tiny

ORDERS = [
    Order(request=Request("a cat", seed=1, steps=3, guidance=4.5)),
    Order(request=Request("a much longer prompt about dogs", seed=2, steps=5, guidance=1.0)),
    Order(request=Request("a cat", negative_prompt="blur", seed=3, steps=4, guidance=7.0)),
    Order(request=Request("rain", seed=4, steps=6, guidance=2.0, solver="euler")),
]


@pytest.fixture(scope="module")
def sana() -> Sana:
    return tiny.sana(instruction="none")


def opened(painter: SanaPainter, orders: Sequence[Order]) -> list[Sketch]:
    """A sketch for each picture of each order."""
    plans = [painter.plan(order) for order in orders]
    return list(painter.open([(plan, index) for plan in plans for index in range(len(plan.seeds))]))


def finished(painter: SanaPainter, sketches: Sequence[Sketch]) -> list[Picture]:
    """The pictures, drawn in one batch that each leaves when its own steps are done."""
    done: dict[int, Picture] = {}
    while left := [one for one in sketches if id(one) not in done]:
        assert painter.step(left) == [None] * len(left)
        ready = [one for one in left if one.step >= one.job.steps]
        done |= {
            id(one): picture for one, picture in zip(ready, painter.finish(ready), strict=True)
        }
    return [done[id(one)] for one in sketches]


def levels(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of a value."""
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def test_a_mixed_batch_draws_the_pictures_of_the_pipeline(sana: Sana) -> None:
    """Other steps, guidance, solvers and prompts beside each change no bit."""
    painter = SanaPainter(sana, exact=True)
    for order, drawn in zip(ORDERS, finished(painter, opened(painter, ORDERS)), strict=True):
        (alone,) = sana.generate(order.request)
        assert levels(drawn.image, alone.image) == 0
        assert drawn.metadata == alone.metadata


def test_without_exact_no_value_is_more_than_one_level_off(sana: Sana) -> None:
    painter = SanaPainter(sana)
    for order, drawn in zip(ORDERS, finished(painter, opened(painter, ORDERS)), strict=True):
        (alone,) = sana.generate(order.request)
        assert levels(drawn.image, alone.image) <= 1


def test_a_picture_that_joins_between_two_steps_changes_nothing(sana: Sana) -> None:
    painter = SanaPainter(sana, exact=True)
    first, late = opened(painter, ORDERS[:1]) + opened(painter, ORDERS[1:2])
    painter.step([first])
    drawn = finished(painter, [first, late])
    for order, picture in zip(ORDERS, drawn, strict=False):
        (alone,) = sana.generate(order.request)
        assert levels(picture.image, alone.image) == 0


def test_the_images_of_an_order_are_those_of_their_seeds(sana: Sana) -> None:
    painter = SanaPainter(sana, exact=True)
    order = Order(request=Request("a cat", seed=5, images=3, steps=2))
    for index, drawn in enumerate(finished(painter, opened(painter, [order]))):
        (alone,) = sana.generate(Request("a cat", seed=5 + index, steps=2))
        assert levels(drawn.image, alone.image) == 0
        assert drawn.request == alone.request


def test_an_edit_with_its_mask_draws_beside_others(sana: Sana) -> None:
    painter = SanaPainter(sana, exact=True)
    image = Image.effect_noise((64, 64), 90).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    request = Request("a cat", seed=6, steps=4, strength=0.5)
    order = Order(request=request, image=_png(image), mask=_png(mask))
    plan = painter.plan(order)
    assert plan.steps == 2, "half of the steps are run"
    sketches = opened(painter, [order, ORDERS[0]])
    for _ in range(2):
        painter.step(sketches)
    (drawn,) = painter.finish(sketches[:1])
    (alone,) = sana.generate(order.request, image=image, mask=mask)
    assert levels(drawn.image, alone.image) == 0


def test_a_sprint_model_takes_each_picture_s_guidance_as_an_input() -> None:
    sprint = tiny.sprint(instruction="none")
    painter = SanaPainter(sprint, exact=True)
    requests = [Request("a cat", seed=n, steps=n, guidance=4 + n / 4) for n in (1, 2, 4)]
    orders = [Order(request=request) for request in requests]
    for request, drawn in zip(requests, finished(painter, opened(painter, orders)), strict=True):
        (alone,) = sprint.generate(request)
        assert levels(drawn.image, alone.image) == 0


def test_a_plan_says_what_it_takes(sana: Sana) -> None:
    painter = SanaPainter(sana)
    plain = painter.plan(Order(request=Request("a", steps=5, guidance=1.0, images=2)))
    guided = painter.plan(Order(request=Request("a", steps=5, guidance=3.0, images=2)))
    assert (plain.total_work, guided.total_work) == (64 * 64 * 10, 64 * 64 * 20)
    assert replace(plain.request, seed=None) != plain.request, "the seed is decided"


def _png(image: Image.Image) -> bytes:
    return Picture(image, Request("-")).png(metadata=False)

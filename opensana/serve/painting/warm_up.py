"""The first pictures, drawn before the server says that it is ready.

What only a first run pays for (kernels that are chosen or compiled, memory) is paid by nobody who
asks, and the pace is measured before any forecast is made of it.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from opensana.request import Request
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.pace import Pace
from opensana.serve.painter import Painter

STEPS = 2
"""The first pays, the second is measured."""
PROMPT = "a red apple"


def warm_ups(about: Mapping[str, Any]) -> tuple[Order, ...]:
    """An order for each network of a model, in few steps; `about` is the painter's."""
    solver, few_step = about["defaults"]["solver"], about["few_step"]
    control = _grey(about["native_size"]) if "control" in about["modes"] else None
    requests = [Request(PROMPT, steps=STEPS, solver=solver, seed=0)]
    if few_step is not None:
        requests.append(Request(PROMPT, steps=STEPS, solver="scm", seed=0))
    return tuple(Order(request=request, control_image=control) for request in requests)


def draw_first(
    painter: Painter[Any], orders: Sequence[Order], pace: Pace, ending: Callable[[], bool]
) -> bool:
    """Draw the orders, with previews, and forget them; whatever goes wrong is raised.

    Whether all were drawn: it ends before the next step once `ending` is true.
    """
    for order in orders:
        plan = painter.plan(order)
        painter.ready(plan)
        (canvas,) = painter.open([(plan, 0)])
        while canvas.step < plan.steps and not ending():
            start = time.monotonic()
            (error,) = painter.step([canvas])
            if error is not None:
                raise error
            if canvas.step > 1:
                pace.stepped(plan.lane, time.monotonic() - start, plan.work)
            painter.preview(canvas)
        if canvas.step < plan.steps:
            return False
        start = time.monotonic()
        painter.finish([canvas])[0].png()
        pace.ended(time.monotonic() - start)
    return True


def _grey(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "grey").save(buffer, format="PNG")
    return buffer.getvalue()

"""Where jobs come from: a new order, or a server that was stopped or killed.

What such a server left behind is drawn again, since its seeds are known.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

from opensana.errors import OpensanaError
from opensana.serve.jobs.board import Live
from opensana.serve.jobs.job import ImageRecord, JobError, JobRecord
from opensana.serve.jobs.order import Order
from opensana.serve.jobs.store import Store
from opensana.serve.painter import Plan, Planner

MOST_ATTEMPTS = 3
"""How often a job is begun: one that kills its server is given up."""


def new_record(id: str, order: Order, plan: Plan, *, key: str, kind: str) -> JobRecord:
    """A job that waits for its first step."""
    width, height = plan.size
    images = (
        ImageRecord(index=index, seed=seed, width=width, height=height, steps=plan.steps)
        for index, seed in enumerate(plan.seeds)
    )
    return JobRecord(
        id=id,
        key=key,
        kind=kind,
        state="queued",
        created=time.time(),
        request=plan.request,
        images=tuple(images),
        inputs=tuple(order.pictures),
        control_scale=order.control_scale,
        loras=plan.loras,
        notes=plan.notes,
    )


def unfinished(store: Store, planner: Planner) -> Iterator[Live]:
    """The jobs to draw, oldest first; those that cannot be are noted as interrupted."""
    for record in store.unfinished():
        attempts = record.attempts + (record.state == "running")
        if attempts >= MOST_ATTEMPTS:
            _give_up(store, record, f"the server ended {attempts} times while it drew this")
            continue
        try:
            plan = planner.plan(store.order(record.id))
        except OpensanaError as error:
            _give_up(store, record, f"the server was stopped, and now: {error}")
            continue
        images = tuple(replace(one, step=one.steps if one.done else 0) for one in record.images)
        again = replace(record, state="queued", images=images, attempts=attempts)
        yield Live(again, replace(plan, details=None))


def _give_up(store: Store, record: JobRecord, why: str) -> None:
    error = JobError(why, "interrupted")
    store.update(replace(record, state="failed", finished=time.time(), error=error))

"""A painter of gradients, and a server over it: what the tests of the server are made with."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Hashable, Iterator, MutableSequence, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import uvicorn
from PIL import Image

from opensana.drawing.inputs import read_inputs
from opensana.drawing.picture import Picture
from opensana.errors import RequestError
from opensana.request import seeds_from
from opensana.serve.app import make_app
from opensana.serve.gate.keys import NO_KEYS, Keys
from opensana.serve.jobs.order import LoraChoice, Order
from opensana.serve.jobs.store import Store
from opensana.serve.painter import Plan
from opensana.serve.run import BACKLOG, bind, uvicorn_config
from opensana.serve.service import Service
from opensana.weights.lora import MergedLora, lora_provenance

NATIVE, STEPS = 64, 4
RANDOM_SEED = 1234


@dataclass(eq=False)
class Sheet:
    """A picture of which one more line is painted at each step."""

    plan: Plan
    index: int
    step: int = 0


@dataclass
class Gradient:
    """Paints a gradient for each seed, `step_seconds` a step however many there are."""

    step_seconds: float = 0.0
    fail: Callable[[str, list[Sheet]], None] = lambda what, sheets: None
    """Raises what should go wrong, by the method's name."""
    batches: MutableSequence[list[tuple[str, int]]] = field(default_factory=list)
    """Prompt and step of each picture of each batch."""
    loras: tuple[str, ...] = ("film", "ink")
    """Names that requests may choose."""
    ready_seconds: float = 0.0
    """That a lane takes to be ready where the last batch was of another."""
    lane: Hashable = None
    """That is ready."""

    def about(self) -> dict[str, Any]:
        defaults = {"width": NATIVE, "height": NATIVE, "steps": STEPS, "guidance": 1.0}
        more = {"solver": "euler", "images": 1, "strength": 0.6, "negative_prompt": ""}
        return {
            "model": "gradient",
            "licence": "none",
            "modes": ["text", "image", "mask"],
            "defaults": defaults | more,
            "solvers": ["flow_dpm", "euler"],
            "few_step": None,
            "native_size": NATIVE,
            "sizes": [[NATIVE, NATIVE]],
            "loras": [listed(name) for name in self.loras],
            "previews": True,
            "exact": True,
        }

    def plan(self, order: Order) -> Plan:
        self.fail("plan", [])
        notes, loras = list[str](), self._decided(order)
        request = order.request
        image, _ = read_inputs(order.inputs, request, controlnet=False, notice=notes.append)
        size = image.size_for(request.width, request.height, 32) if image else None
        width, height = size or (request.width or NATIVE, request.height or NATIVE)
        seed = RANDOM_SEED if request.seed is None else request.seed
        steps = request.steps or STEPS
        complete = replace(
            request, width=width, height=height, steps=steps, seed=seed,
            guidance=request.guidance or 1.0, solver=request.solver or "euler",
        )  # fmt: skip
        return Plan(
            request=complete,
            seeds=seeds_from(seed, request.images),
            size=(width, height),
            lane=(width, height, loras),
            steps=steps,
            work=width * height,
            loras=loras,
            notes=tuple(notes),
        )

    def _decided(self, order: Order) -> tuple[LoraChoice, ...]:
        for one in order.loras:
            if one.name not in self.loras:
                raise RequestError(f"the LoRA {one.name!r} is not listed here", field="lora")
        return tuple(replace(one, sha256=digest(one.name)) for one in order.loras)

    def refresh(self) -> None:
        self.fail("refresh", [])

    def ready(self, plan: Plan) -> None:
        self.fail("ready", [])
        if plan.lane != self.lane:
            time.sleep(self.ready_seconds)
        self.lane = plan.lane

    def open(self, wanted: Sequence[tuple[Plan, int]]) -> list[Sheet]:
        sheets = [Sheet(plan, index) for plan, index in wanted]
        self.fail("open", sheets)
        return sheets

    def step(self, canvases: Sequence[Sheet]) -> list[Exception | None]:
        assert {one.plan.lane for one in canvases} == {self.lane}
        self.fail("step", list(canvases))
        time.sleep(self.step_seconds)
        self.batches.append([(one.plan.request.prompt, one.step) for one in canvases])
        for one in canvases:
            one.step += 1
        return [None] * len(canvases)

    def finish(self, canvases: Sequence[Sheet]) -> list[Picture]:
        self.fail("finish", list(canvases))
        return [self._picture(one) for one in canvases]

    def preview(self, canvas: Sheet) -> Image.Image | None:
        return Image.new("RGB", (8, 8), (canvas.step * 20, 0, 0))

    def _picture(self, sheet: Sheet) -> Picture:
        plan, seed = sheet.plan, sheet.plan.seeds[sheet.index]
        image = gradient(
            *plan.size, seed, plan.steps + round(10 * sum(x.scale for x in plan.loras))
        )
        loras = [MergedLora(one.name, str(one.sha256), one.scale) for one in plan.loras]
        request = replace(plan.request, seed=seed, images=1)
        return Picture(image, request, model="gradient", provenance=lora_provenance(loras))


def listed(name: str) -> dict[str, Any]:
    """A LoRA in the capabilities."""
    facts = {"rank": 4, "bytes": 4096, "trigger_words": [f"{name} style"]}
    return {"name": name, "sha256": digest(name), **facts}


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def gradient(width: int, height: int, seed: int, steps: int) -> Image.Image:
    """The picture of a seed."""
    red = np.linspace(0, 255, width, dtype=np.uint8)[None].repeat(height, 0)
    green = np.linspace(0, 255, height, dtype=np.uint8)[:, None].repeat(width, 1)
    blue = np.full_like(red, (seed * 37 + steps) % 256)
    return Image.fromarray(np.stack([red, green, blue], axis=-1))


@dataclass
class Server:
    """A server in a thread of its own, on a free port."""

    service: Service
    painter: Gradient
    url: str
    client: httpx2.Client

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.client.post(path, json=body)

    def submit(self, **body: Any) -> dict[str, Any]:
        """The job of a body."""
        response = self.post("/v1/jobs", **({"prompt": "a gradient"} | body))
        assert response.status_code == 202, response.text
        return response.json()

    def job(self, id: str) -> dict[str, Any]:
        return self.client.get(f"/v1/jobs/{id}").json()

    def wait(self, id: str, state: str = "completed", seconds: float = 20.0) -> dict[str, Any]:
        """The job once it is in a state."""
        end = time.monotonic() + seconds
        while (job := self.job(id))["status"] != state:
            assert time.monotonic() < end, f"not {state}: {job}"
            time.sleep(0.005)
        return job


@contextmanager
def serving(
    folder: Path,
    painter: Gradient | None = None,
    *,
    keys: Keys = NO_KEYS,
    headers: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[Server]:
    """A server over a painter; `options` are those of `Service`."""
    painter = painter or Gradient()
    service = Service(painter, Store(folder), **options)
    listener = bind("127.0.0.1", 0)
    listener.listen(BACKLOG)
    server = uvicorn.Server(uvicorn_config(make_app(service, keys=keys), closing=1))
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True
    )
    service.start()
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        # Certificates take long to be read, and none is needed.
        with httpx2.Client(base_url=url, headers=headers, timeout=30, verify=False) as client:
            yield Server(service, painter, url, client)
    finally:
        server.should_exit = True
        thread.join()
        service.close()

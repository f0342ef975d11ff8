"""SanaPainter: a model as a painter. One batch holds pictures at different steps.

Every picture has its own solver, which asks for a velocity; the questions of a batch are rows of
one call of the network. Prompts that begin together are read as one batch, and pictures that end
together are decoded as one. A product of more rows may be summed in another order, so the last bit
of a value depends on the company, and a pixel may be a level off. With `exact` the batch is only a
turn that is taken together: every product is the one of a picture alone, and so is every pixel.

Pictures with the same LoRAs at the same scales share a lane, and so a batch. Those with others take
turns, on a transformer of their own (`models/with_loras.py` says why it is not one for all).
"""

import copy
import math
import threading
from collections.abc import Hashable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from opensana.drawing.decoding import band_memory, decode_images
from opensana.drawing.init_image import STRENGTH
from opensana.drawing.job import Job
from opensana.drawing.picture import Picture
from opensana.drawing.prompts import prompt_notes
from opensana.drawing.solving import Prepared, encode, job_noises, job_start, network_of, steps_of
from opensana.errors import OutOfMemory, RequestError
from opensana.flow.edit import last_steps
from opensana.pipeline import Sana
from opensana.request import MOST_SPRINT_STEPS, Request
from opensana.runtime.shortage import ran_out
from opensana.serve.jobs.order import Order
from opensana.serve.logs import log
from opensana.serve.painter import Plan
from opensana.serve.painting.merged import Choices, MergedModels
from opensana.serve.painting.previews import Previewer
from opensana.serve.painting.sketch import Given, Sketch
from opensana.serve.painting.texts import Texts
from opensana.transformer.model import PreparedText, together

ASPECTS = ((1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (4, 5), (3, 4), (2, 3), (9, 16), (1, 2))


@dataclass(frozen=True)
class Details:
    """The model that draws a plan, but for its LoRAs, and its job there."""

    sana: Sana
    job: Job
    loras: Choices
    network: Hashable
    """Stands for the transformer with its LoRAs."""


class SanaPainter:
    """A `Painter` over a model."""

    def __init__(
        self,
        sana: Sana,
        *,
        previewer: Previewer | None = None,
        exact: bool = False,
        merged: MergedModels | None = None,
    ) -> None:
        """`merged` are for requests that name LoRAs; without it none can."""
        self._sana, self._previewer, self._exact, self._merged = sana, previewer, exact, merged
        self._reading = threading.Lock()
        # Another thread may not use the tokenizer that the text encoder works with.
        self._reader = copy.copy(sana.text)
        self._reader.tokenizer = copy.deepcopy(sana.text.tokenizer)
        self._texts = Texts(exact=exact)

    def about(self) -> dict[str, Any]:
        sana = self._sana
        complete = sana.complete(Request("-"))
        unit = sana.autoencoder.compression * sana.transformer.config.patch_size
        modes = ["text"] if sana.sprint else ["text", "image", "mask"]
        defaults = {
            "width": complete.width,
            "height": complete.height,
            "steps": complete.steps,
            "guidance": complete.guidance,
            "solver": complete.solver,
            "images": 1,
            "strength": STRENGTH,
            "negative_prompt": "",
        }
        return {
            "model": sana.info.name,
            "licence": sana.info.defaults.licence,
            "modes": ["control"] if sana.controlnet else modes,
            "defaults": defaults,
            "solvers": ["scm"] if sana.sprint else ["flow_dpm", "euler"],
            "few_step": {"steps": list(range(1, MOST_SPRINT_STEPS + 1))} if sana.few_step else None,
            "native_size": sana.native_size,
            "sizes": [_size(w / h, sana.native_size, unit) for w, h in ASPECTS],
            "loras": self._merged.view() if self._merged else [],
            "previews": self._previewer is not None,
            "exact": self._exact,
        }

    def refresh(self) -> None:
        if self._merged is not None:
            self._merged.refresh()

    def plan(self, order: Order) -> Plan:
        request, loras, notes = order.request, order.loras, list[str]()
        if loras:
            if self._merged is None:
                message = "no LoRAs are listed here; start the server with --loras FOLDER"
                raise RequestError(message, field="lora")
            loras = self._merged.decide(loras)
            sana = self._merged.describe(loras)
        else:
            plain = order.image is None and order.control_image is None
            sana = self._sana.for_request(request) if plain else self._sana
        job = sana.job(request, order.inputs, notice=notes.append)
        with self._reading:
            notes += prompt_notes(self._reader, job)
        width, height = job.drawn_size
        start = job.init_image is not None
        steps = len(last_steps(range(job.steps + 1), job.strength)) - 1 if start else job.steps
        network = id(sana.transformer), loras
        return Plan(
            request=job.request,
            seeds=job.seeds,
            size=job.size,
            lane=(job.latent_size, network),
            steps=steps,
            work=width * height * (2 if job.guided else 1),
            loras=loras,
            notes=(*notes, *job.notes),
            details=Details(sana, job, loras, network),
        )

    def ready(self, plan: Plan) -> None:
        with _memory_errors():
            self._with_loras(plan.details.sana, plan.details.loras)

    def _with_loras(self, sana: Sana, loras: Choices) -> Sana:
        """The model with LoRAs merged, which is made if it is not at hand."""
        if not loras:
            return sana
        assert self._merged is not None
        return replace(sana, transformer=self._merged.transformer(loras))

    @torch.inference_mode()
    def open(self, wanted: Sequence[tuple[Plan, int]]) -> list[Sketch]:
        with _memory_errors():
            first: Details = wanted[0][0].details
            sana = self._with_loras(first.sana, first.loras)
            if sana.controlnet is None:
                self._texts.read(first.network, sana, [plan.details.job for plan, _ in wanted])
            return [self._sketch(plan.details, index) for plan, index in wanted]

    def _sketch(self, details: Details, index: int) -> Sketch:
        sana, job = details.sana, details.job
        given = [Given() for _ in range(2 if job.guided else 1)]
        if sana.controlnet is None:
            texts = self._texts.of(details.network, job)
        else:
            texts = encode(self._with_loras(sana, details.loras), job, memory=sana.memory)
        velocity, steps = steps_of(
            job,
            given,
            job_noises(sana, job, job.seeds[index : index + 1]),
            shift=sana.shift,
            start=job_start(sana, job, memory=sana.memory),
        )
        asked = next(steps)
        return Sketch(sana, job, details.loras, index, texts, given, velocity, steps, asked)

    @torch.inference_mode()
    def step(self, canvases: Sequence[Sketch]) -> list[Exception | None]:
        with _memory_errors():
            self._give(canvases)
        return [one.advance() for one in canvases]

    def _give(self, sketches: Sequence[Sketch]) -> None:
        """The velocities that the pictures wait for: one call of the network."""
        rows = [(one, n) for one in sketches for n in range(len(one.texts))]
        rows.sort(key=lambda row: id(row[0].texts[row[1]]))
        groups: dict[int, list[tuple[Sketch, int]]] = {}
        for one, n in rows:
            groups.setdefault(id(one.texts[n]), []).append((one, n))
        texts = [group[0][0].texts[group[0][1]] for group in groups.values()]
        if self._exact:
            for one, n in rows:
                self._run(one.texts[n], [(one, n)])
            return
        plain = [text for text in texts if isinstance(text, PreparedText)]
        if len(plain) == len(texts) > 1:
            joined = together(plain, [len(group) for group in groups.values()])
            self._run(joined, rows)
        else:
            for text, group in zip(texts, groups.values(), strict=True):
                self._run(text, group)

    def _run(self, text: Prepared, rows: Sequence[tuple[Sketch, int]]) -> None:
        sana = self._with_loras(rows[0][0].sana, rows[0][0].loras)
        x = torch.cat([one.asked[0] for one, _ in rows])
        timesteps = torch.stack([one.asked[1] for one, _ in rows])
        guidance = x.new_tensor([one.job.guidance for one, _ in rows]) if sana.sprint else None
        network = network_of(sana)
        answer = network.velocity(x, timesteps, text, guidance=guidance)
        for (one, n), row in zip(rows, answer.split(1), strict=True):
            one.given[n].row = row

    @torch.inference_mode()
    def finish(self, canvases: Sequence[Sketch]) -> list[Picture]:
        with _memory_errors():
            alone = self._exact or len({one.job.cut_to for one in canvases}) > 1
            groups = [[one] for one in canvases] if alone or not canvases else [canvases]
            return [picture for group in groups for picture in self._decode(group)]

    def _decode(self, sketches: Sequence[Sketch]) -> list[Picture]:
        sana, job = sketches[0].sana, sketches[0].job
        latent = torch.cat([one.latent for one in sketches if one.latent is not None])
        size = (len(sketches), *job.latent_size)
        memory = band_memory(sana.autoencoder, size, memory=sana.memory, notice=lambda line: None)
        if memory is not None and len(sketches) > 1:  # one may fit where all do not
            return [picture for one in sketches for picture in self._decode([one])]
        # Several are decoded with fewer of them, which the worker sees to.
        notice = None if len(sketches) > 1 else lambda line: log("memory", message=line)
        images = decode_images(
            sana.autoencoder, latent, memory=memory, size=job.cut_to, notice=notice
        )
        return [
            one.sana.picture(one.job, one.job.seeds[one.index], image)
            for one, image in zip(sketches, images, strict=True)
        ]

    def preview(self, canvas: Sketch) -> Image.Image | None:
        if self._previewer is None or canvas.x0 is None:
            return None
        with torch.inference_mode():
            return self._previewer(canvas.x0[0].float().cpu())


def _size(aspect: float, native: int, unit: int) -> list[int]:
    """The size of that shape nearest in area to the native one."""
    width = max(round(native * math.sqrt(aspect) / unit), 1) * unit
    return [width, max(round(width / aspect / unit), 1) * unit]


@contextmanager
def _memory_errors():
    """What torch says of too little memory, as OutOfMemory."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not ran_out(error):
            raise
        raise OutOfMemory(
            "there is not enough memory for this picture; try a smaller one"
        ) from error

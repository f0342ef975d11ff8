"""Sana: the parts of the paper in the order they run, text -> transformer and solver -> picture.

A model folder has the published layout; `Sana.load` reads it and `Sana.save` writes it.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from opensana.drawing.batches import Seeds, batches_of, solved_batches
from opensana.drawing.decoding import band_memory, decode_images, room_to_decode
from opensana.drawing.inputs import NO_INPUTS, Inputs, read_inputs
from opensana.drawing.job import Job, make_job
from opensana.drawing.picture import Picture, read_request
from opensana.drawing.prompts import prompt_notes
from opensana.drawing.solving import encode, graph_note, job_noises, job_start, solve
from opensana.flow.solvers import OnStep
from opensana.models.open import OpenModel, few_step_model, open_model
from opensana.models.options import DEFAULT_MODEL, DtypeName, LoadOptions, OffloadName, SchemeName
from opensana.pictures.input import ImageSource
from opensana.request import Request, as_request
from opensana.weights.lora import LoraSource

__all__ = ["Picture", "Sana", "read_request"]

Notice = Callable[[str], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Sana(OpenModel):
    """A text-to-image model, ready to draw."""

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
        text_device: str | None = None,
        offload: OffloadName | None = None,
        dtype: DtypeName | None = None,
        revision: str | None = None,
        variant: str | None = None,
        memory: int | str | None = None,
        compile: bool = False,
        transformer: str | Path | None = None,
        lora: LoraSource | Sequence[LoraSource] | None = None,
        lora_scale: float | Sequence[float] = 1.0,
        controlnet: str | Path | None = None,
        kernels: bool = False,
        quantize: SchemeName | None = None,
        graph: bool = False,
    ) -> "Sana":
        """Load a model that comes along, a folder or a hub id; see `LoadOptions` for the keywords.

        A model with a distilled transformer draws with that in 1 to 4 steps (`for_request`), unless
        another transformer, a LoRA or a ControlNet is given.
        """
        options = LoadOptions(
            model=model, revision=revision, variant=variant, transformer=transformer, lora=lora,
            lora_scale=lora_scale, controlnet=controlnet, device=device,
            text_device=text_device, offload=offload, dtype=dtype, memory=memory, compile=compile,
            kernels=kernels, quantize=quantize, graph=graph,
        )  # fmt: skip
        return cls(**vars(open_model(options)))

    def generate(
        self,
        prompt: str | Request,
        on_step: OnStep | None = None,
        *,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        control_image: ImageSource | None = None,
        control_scale: float = 1.0,
        notice: Notice | None = None,
        stop: Stop | None = None,
        **fields: Any,
    ) -> list[Picture]:
        """The pictures that `draw` yields, once all are done."""
        inputs = Inputs(
            image=image, mask=mask, control_image=control_image, control_scale=control_scale
        )
        return list(self.draw(prompt, on_step, notice=notice, stop=stop, **vars(inputs), **fields))

    def draw(
        self,
        prompt: str | Request,
        on_step: OnStep | None = None,
        *,
        image: ImageSource | None = None,
        mask: ImageSource | None = None,
        control_image: ImageSource | None = None,
        control_scale: float = 1.0,
        notice: Notice | None = None,
        stop: Stop | None = None,
        **fields: Any,
    ) -> Generator[Picture, None, None]:
        """Draw the pictures of a request, or of a prompt and fields of `Request`, as they are done.

        Four are drawn together and come together. What is wrong with the request is
        raised by the call itself, before the first picture is asked for.

        With `image` they start from that picture instead of noise (`strength` says how far from
        it); with `mask`, of the same size, only its white part is drawn anew and outside it every
        pixel stays. The size is the picture's unless the request has one: see `InitImage`.
        A model with a ControlNet needs a `control_image`, scaled and cut to the size that is drawn;
        `control_scale` is how much it counts: see `ControlImage`.

        `on_step` gets the step, the number of steps and the latent; `notice` gets one line for
        each thing the user should know, such as a prompt that is too long (default: a warning).
        `stop`, such as `is_set` of a threading.Event, is asked before the work and after every
        step: once it says True nothing more is drawn, and the pictures end with those that were
        done. Between two pictures `close` of the generator does the same.
        """
        request, notice = as_request(prompt, fields), notice or _warn
        inputs = Inputs(
            image=image, mask=mask, control_image=control_image, control_scale=control_scale
        )
        model = self.for_request(request) if inputs == NO_INPUTS else self
        job = model.job(request, inputs, notice=notice)
        for note in prompt_notes(self.text, job):
            notice(note)
        room = self.memory or room_to_decode(model.device, model.room_in_decoding)
        batches = batches_of(self, job, memory=room)
        size = (len(batches[0]), *job.latent_size)
        memory = band_memory(self.autoencoder, size, memory=self.memory, notice=notice, room=room)
        for note in filter(None, (*job.notes, graph_note(model, job, len(batches[0])))):
            notice(note)
        return model._pictures(job, batches, memory, on_step, stop or (lambda: False), notice)

    def _pictures(
        self,
        job: Job,
        batches: Sequence[Seeds],
        memory: int | None,
        on_step: OnStep | None,
        stop: Stop,
        notice: Notice,
    ) -> Generator[Picture, None, None]:
        """The pictures of a job, one batch of seeds after another, until `stop` says True.

        Inference mode is left before each is yielded: the caller would be in it until the next.
        """
        if stop():
            return
        try:
            with torch.inference_mode():
                start = job_start(self, job, memory=memory)
                texts = encode(self, job, memory=memory)
            solved = solved_batches(
                self, job, batches, texts, start, on_step=on_step, stop=stop, notice=notice
            )
            for seeds, latent in solved:
                self.begin(self.autoencoder)
                images = decode_images(
                    self.autoencoder, latent, memory=memory, size=job.cut_to, notice=notice
                )
                for seed, drawn in zip(seeds, images, strict=True):
                    yield self.picture(job, seed, drawn)
        finally:
            self.end()

    def picture(self, job: Job, seed: int, drawn: Image.Image) -> Picture:
        """What was decoded for one seed of a job, with the request that draws it again."""
        pasted = job.init_image.paste(drawn) if job.init_image else drawn
        dtype = str(self.transformer.dtype).removeprefix("torch.")
        return Picture(
            pasted,
            replace(job.request, seed=seed, images=1),
            model=self.info.name,
            provenance={"dtype": dtype, **self.provenance, **job.provenance},
        )

    @torch.inference_mode()
    def draw_latents(
        self,
        request: Request,
        *,
        noises: Iterable[Tensor] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The latents [B, C, h, w] of a request, before decoding; `noises` replace the seeds'."""
        model = self.for_request(request)
        job = model.job(request)
        own = job_noises(model, job) if noises is None else (x.to(self.device) for x in noises)
        try:
            return solve(model, job, encode(model, job), own, on_step=on_step)
        finally:
            model.end()

    def for_request(self, request: Request) -> "Sana":
        """The model that draws a request: with `few_step` for 1 to 4 steps or solver scm.

        A request for what few steps cannot do, another solver, a negative prompt or a picture to
        start from, is drawn in any number of steps by the model itself.
        """
        return few_step_model(self, request) or self

    def job(
        self, request: Request, inputs: Inputs = NO_INPUTS, *, notice: Notice | None = None
    ) -> Job:
        """The request with everything decided, and its pictures, read and checked.

        RequestError for what does not go together or is not for this model.
        """
        controlnet = self.controlnet is not None
        read = read_inputs(inputs, request, controlnet=controlnet, notice=notice or _warn)
        return make_job(request, self, *read)

    def complete(self, request: Request) -> Request:
        """The request with everything decided that it leaves to the model, checked against it."""
        return make_job(request, self).request


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)

"""Sana: the parts of the paper in the order they run, text -> transformer and solver -> picture.

A model folder has the published layout; `Sana.load` reads it and `Sana.save` writes it.
"""

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from opensana.drawing.control_image import Control, read_control
from opensana.drawing.decoding import band_memory, decode_images, encode_image
from opensana.drawing.init_image import Original, read_original
from opensana.drawing.picture import Picture, read_request
from opensana.drawing.prompts import prompt_notes, read_prompts
from opensana.drawing.solving import Condition, Prepared, network_of, prepare, solve
from opensana.errors import RequestError
from opensana.flow.edit import Start
from opensana.flow.noise import noises_for
from opensana.flow.solvers import OnStep
from opensana.models.open import OpenModel, open_model
from opensana.models.options import DEFAULT_MODEL, DtypeName, LoadOptions
from opensana.models.resolution_bins import Size, nearest_bin
from opensana.models.save import write_model
from opensana.pictures.input import ImageSource
from opensana.request import MOST_SPRINT_STEPS, Request
from opensana.text.encoder import TextStates
from opensana.weights.lora import LoraSource

__all__ = ["Picture", "Sana", "read_request"]

IMAGES_AT_ONCE = 4
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Sana(OpenModel):
    """A text-to-image model, ready to draw."""

    @classmethod
    def load(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str = "auto",
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
    ) -> "Sana":
        """Load a model that comes along, a folder or a hub id; see `LoadOptions` for the keywords.

        A model with a distilled transformer draws with that in 1 to 4 steps (`for_request`), unless
        another transformer, a LoRA or a ControlNet is given.
        """
        options = LoadOptions(
            model=model, revision=revision, variant=variant, transformer=transformer, lora=lora,
            lora_scale=lora_scale, controlnet=controlnet, device=device, dtype=dtype,
            memory=memory, compile=compile, kernels=kernels,
        )  # fmt: skip
        return cls(**vars(open_model(options)))

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def shift(self) -> float:
        """How far the solver's noise levels are shifted towards noise (section 4.2)."""
        return self.info.shift

    @property
    def sprint(self) -> bool:
        """A few-step model, whose network takes the guidance as an input (SANA-Sprint)."""
        return self.transformer.config.guidance_embeds

    @property
    def native_size(self) -> int:
        """The side in pixels of the pictures that the model was trained for."""
        return self.transformer.config.sample_size * self.autoencoder.compression

    def save(self, folder: str | Path) -> Path:
        """Write the whole model in the published layout; diffusers reads it."""
        return write_model(
            folder,
            text=self.text,
            transformer=self.transformer,
            autoencoder=self.autoencoder,
            info=self.info,
            sprint=self.few_step,
        )

    # -------------------------------------------------------------- drawing

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
        **fields: Any,
    ) -> list[Picture]:
        """The pictures that `draw` yields, once all are done."""
        return list(
            self.draw(
                prompt,
                on_step,
                image=image,
                mask=mask,
                control_image=control_image,
                control_scale=control_scale,
                notice=notice,
                **fields,
            )
        )

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
        **fields: Any,
    ) -> Generator[Picture, None, None]:
        """Draw the pictures of a request, or of a prompt and fields of `Request`, as they are done.

        IMAGES_AT_ONCE are drawn together and come together. What is wrong with the request is
        raised by the call itself, before the first picture is asked for; `close` ends the work.

        With `image` they start from that picture instead of noise (`strength` says how far from
        it); with `mask`, of the same size, only its white part is drawn anew and outside it every
        pixel stays. The size is the picture's unless the request has one: see `Original`.
        A model with a ControlNet needs a `control_image`, scaled and cut to the size that is drawn;
        `control_scale` is how much it counts: see `Control`.

        `on_step` gets the step, the number of steps and the latent; `notice` gets one line for
        each thing the user should know, such as a prompt that is too long (default: a warning).
        """
        request, notice = _as_request(prompt, fields), notice or _warn
        if image is None and mask is None and control_image is None:
            drawer = self.for_request(request)
            if drawer is not self:
                return drawer.draw(request, on_step, notice=notice)
        source = read_original(
            image, mask, strength=request.strength, binned=request.binned, notice=notice
        )
        control = read_control(control_image, control_scale, expected=self.controlnet is not None)
        facts = (source.facts if source else {}) | (control.facts if control else {})
        request = self.complete(source.complete(request, self._size_unit) if source else request)
        for note in prompt_notes(self.text, request):
            notice(note)
        memory = self._band_memory(request, notice)
        original = source and source.fit(request, native=self.native_size, notice=notice)
        control = control and control.fit(*self._drawn_size(request), notice)
        return self._pictures(request, on_step, original, control, memory, facts)

    def _pictures(
        self,
        request: Request,
        on_step: OnStep | None,
        original: Original | None,
        control: Control | None,
        memory: int | None,
        facts: dict[str, Any],
    ) -> Generator[Picture, None, None]:
        """The pictures of a complete request, one batch of seeds after another.

        Inference mode is left before each is yielded: the caller would be in it until the next.
        """
        with torch.inference_mode():
            start = original and self._start(original, request, memory)
            condition = control and self._condition(control, memory)
            texts = self.encode(request, condition=condition)
        size = _asked_size(request) if request.binned else None
        many, all_seeds = IMAGES_AT_ONCE, request.seeds
        batches = [all_seeds[i : i + many] for i in range(0, len(all_seeds), many)]
        for index, seeds in enumerate(batches):
            step = _overall(on_step, index, len(batches))
            with torch.inference_mode():
                latent = self.solve(request, texts, self.noises(request, seeds), step, start)
                images = decode_images(self.autoencoder, latent, memory=memory, size=size)
            for seed, drawn in zip(seeds, images, strict=True):
                whole = original.paste(drawn) if original else drawn
                yield self._picture(whole, request, seed, facts)

    @torch.inference_mode()
    def draw_latents(
        self,
        request: Request,
        *,
        noises: Iterable[Tensor] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The latents [B, C, h, w] of a request, before decoding; `noises` replace the seeds'."""
        drawer = self.for_request(request)
        if drawer is not self:
            return drawer.draw_latents(request, noises=noises, on_step=on_step)
        request = self.complete(request)
        own = self.noises(request, request.seeds)
        given = own if noises is None else (noise.to(self.device) for noise in noises)
        return self.solve(request, self.encode(request), given, on_step)

    def for_request(self, request: Request) -> "Sana":
        """The model that draws a request: with `few_step` for 1 to 4 steps or solver scm.

        A request for what few steps cannot do, another solver, a negative prompt or a picture to
        start from, is drawn in any number of steps by the model itself.
        """
        if self.few_step is None or request.solver not in (None, "scm"):
            return self
        plain = request.strength is None and not request.negative_prompt.strip()
        short = request.steps is not None and request.steps <= MOST_SPRINT_STEPS
        if request.solver == "scm" or (plain and short):
            own = self.few_step
            return replace(self, transformer=own, info=self.info.sprint, few_step=None)
        return self

    def complete(self, request: Request) -> Request:
        """The request with everything decided that it leaves to the model, checked against it."""
        defaults = self.info.defaults
        whole = replace(
            request.seeded(),
            width=request.width or self.native_size,
            height=request.height or self.native_size,
            steps=defaults.steps if request.steps is None else request.steps,
            guidance=defaults.guidance if request.guidance is None else request.guidance,
        )
        unit = self._size_unit
        for name, value in zip(("width", "height"), self._drawn_size(whole), strict=True):
            if value % unit:
                low = max(value // unit, 1) * unit
                raise RequestError(
                    f"{name} must be a multiple of {unit} for this model, got {value}; try {low}"
                )
        return whole.fitted(self.info.solver)

    def noises(self, request: Request, seeds: Sequence[int]) -> Iterator[Tensor]:
        """Latents of noise, float32, one a seed: one to start from, and scm takes one a step."""
        shape = (self.autoencoder.latent_channels, *self._latent_size(request))
        return noises_for(seeds, shape, self.device)

    def _latent_size(self, request: Request) -> tuple[int, int]:
        width, height = self._drawn_size(request)
        return height // self.autoencoder.compression, width // self.autoencoder.compression

    def _drawn_size(self, request: Request) -> Size:
        """What is solved and decoded: the size asked for, or the nearest trained one."""
        size = _asked_size(request)
        return nearest_bin(*size, native=self.native_size) if request.binned else size

    def _band_memory(self, request: Request, notice: Notice) -> int | None:
        size = (min(request.images, IMAGES_AT_ONCE), *self._latent_size(request))
        return band_memory(self.autoencoder, size, memory=self.memory, notice=notice)

    @property
    def _size_unit(self) -> int:
        return self.autoencoder.compression * self.transformer.config.patch_size

    def _start(self, original: Original, request: Request, memory: int | None) -> Start:
        assert request.strength is not None
        cells = original.cells(self.autoencoder.compression)
        redrawn = None if cells is None else torch.from_numpy(cells).to(self.device)
        x0 = encode_image(self.autoencoder, original.image, memory=memory)
        return Start(x0, request.strength, redrawn)

    def _condition(self, control: Control, memory: int | None) -> Condition:
        latent = encode_image(self.autoencoder, control.image, memory=memory)
        return Condition(latent, control.scale)

    def solve(
        self,
        request: Request,
        texts: Sequence[Prepared],
        noises: Iterable[Tensor],
        on_step: OnStep | None = None,
        start: Start | None = None,
    ) -> Tensor:
        """The latents [B, C, h, w] of a complete request, its texts from `encode`."""
        return solve(
            network_of(self.transformer, self.controlnet),
            request,
            texts,
            noises,
            shift=self.shift,
            on_step=on_step,
            start=start,
        )

    def encode(
        self,
        request: Request,
        prompts: Sequence[str] | None = None,
        *,
        condition: Condition | None = None,
    ) -> list[Prepared]:
        """What the network reads: the prompt, or `prompts`, and for guidance the negative.

        With a ControlNet it reads the latent of a control image beside each, at some scale.
        """
        read_control(None, 1.0, expected=self.controlnet is not None and condition is None)
        states = read_prompts(self.text, request, prompts)
        return [self._prepare(state, condition) for state in states]

    def _prepare(self, text: TextStates, condition: Condition | None) -> Prepared:
        states, mask = text.states.to(self.device), text.mask.to(self.device)
        return prepare(self.transformer, self.controlnet, states, mask, condition)

    def _picture(
        self, image: Image.Image, request: Request, seed: int, facts: dict[str, Any]
    ) -> Picture:
        own = replace(request, seed=seed, images=1)
        dtype = str(self.transformer.dtype).removeprefix("torch.")
        facts = {"dtype": dtype, **self.provenance, **facts}
        return Picture(image, own, model=self.info.name, facts=facts)


def _as_request(prompt: str | Request, fields: dict[str, Any]) -> Request:
    if isinstance(prompt, Request):
        return replace(prompt, **fields) if fields else prompt
    return Request(prompt, **fields)


def _asked_size(request: Request) -> Size:
    assert request.width
    assert request.height
    return request.width, request.height


def _overall(on_step: OnStep | None, batch: int, batches: int) -> OnStep | None:
    """Steps are counted over all batches, so that progress runs once from start to end."""
    if on_step is None:
        return None
    return lambda step, total, x: on_step(batch * total + step, batches * total, x)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)

"""Sana: the parts of the paper in the order they run, text -> transformer and solver -> picture.

A model folder has the published layout; `Sana.load` reads it and `Sana.save` writes it.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from opensana.autoencoder.model import Autoencoder
from opensana.decoding import band_memory, decode_images
from opensana.device import parse_bytes, resolve_device, resolve_dtype
from opensana.errors import RequestError
from opensana.flow.guidance import Velocity, guided
from opensana.flow.noise import noise_for
from opensana.flow.solvers import SOLVERS, OnStep
from opensana.layout import (
    ModelInfo,
    load_autoencoder,
    load_text,
    load_transformer,
    part_dtype,
    read_info,
    settle,
    stored_dtype,
    write_model,
)
from opensana.picture import Picture, read_request
from opensana.request import Request
from opensana.text.encoder import TextEncoder, TextStates
from opensana.transformer.model import PreparedText, Transformer
from opensana.weights.locate import locate

__all__ = ["Picture", "Sana", "read_request"]

IMAGES_AT_ONCE = 4
Notice = Callable[[str], None]


@dataclass(frozen=True)
class Sana:
    """A text-to-image model, ready to draw."""

    text: TextEncoder
    transformer: Transformer
    autoencoder: Autoencoder
    info: ModelInfo
    memory: int | None = None
    """Bytes that decoding may take beside the weights; None is what is free."""

    @classmethod
    def load(
        cls,
        model: str | Path = "emoji-256",
        *,
        device: str = "auto",
        dtype: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        memory: int | str | None = None,
    ) -> "Sana":
        """Load a model that comes along, a folder or a hub id; `variant` picks fp16/bf16 files.

        `memory` is what decoding may take beside the weights, in bytes or as "4GiB"; left out, what
        is free. Pictures that need more are decoded in bands of rows, to the same pixels.
        """
        memory = parse_bytes(memory) if isinstance(memory, str) else memory
        folder = locate(model, revision=revision, variant=variant)
        info = read_info(folder, name=str(model))
        place = resolve_device(device)
        main = resolve_dtype(place, dtype, stored_dtype(folder, variant))
        others = part_dtype(place, main)
        return cls(
            text=load_text(folder, info, device=place, dtype=others),
            transformer=settle(load_transformer(folder, variant=variant), place, main),
            autoencoder=settle(load_autoencoder(folder, variant=variant), place, others),
            info=info,
            memory=memory,
        )

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def shift(self) -> float:
        """How far the solver's noise levels are shifted towards noise (section 4.2)."""
        return self.info.shift

    @property
    def native_size(self) -> int:
        """The side in pixels of the pictures that the model was trained for."""
        return self.transformer.config.sample_size * self.autoencoder.compression

    def save(self, folder: str | Path) -> Path:
        """Write the whole model in the published layout; diffusers' SanaPipeline reads it."""
        return write_model(
            folder,
            text=self.text,
            transformer=self.transformer,
            autoencoder=self.autoencoder,
            info=self.info,
        )

    # -------------------------------------------------------------- drawing

    @torch.inference_mode()
    def generate(
        self,
        prompt: str | Request,
        on_step: OnStep | None = None,
        *,
        notice: Notice | None = None,
        **fields: Any,
    ) -> list[Picture]:
        """Draw the pictures of a request, or of a prompt and fields of `Request`.

        `on_step` gets the step, the number of steps and the latent; `notice` gets one line for
        each thing the user should know, such as a prompt that is too long (default: a warning).
        """
        request = self.complete(_as_request(prompt, fields))
        self._report_truncation(request, notice or _warn)
        memory = self._band_memory(request, notice or _warn)
        texts = self._encode(request)
        chunks = list(_chunks(request.seeds, IMAGES_AT_ONCE))
        pictures: list[Picture] = []
        for index, seeds in enumerate(chunks):
            step = _overall(on_step, index, len(chunks))
            latent = self._solve(request, texts, self.noise(request, seeds), step)
            images = decode_images(self.autoencoder, latent, memory=memory)
            pictures += [self._picture(i, request, s) for i, s in zip(images, seeds, strict=True)]
        return pictures

    @torch.inference_mode()
    def draw_latents(
        self, request: Request, *, noise: Tensor | None = None, on_step: OnStep | None = None
    ) -> Tensor:
        """The latents [B, C, h, w] of a request, before decoding; `noise` replaces the seeds'."""
        request = self.complete(request)
        noise = self.noise(request, request.seeds) if noise is None else noise.to(self.device)
        return self._solve(request, self._encode(request), noise, on_step)

    def complete(self, request: Request) -> Request:
        """The request with everything decided that it leaves to the model, checked against it."""
        unit = self.autoencoder.compression * self.transformer.config.patch_size
        width, height = request.width or self.native_size, request.height or self.native_size
        for name, value in (("width", width), ("height", height)):
            if value % unit:
                low = max(value // unit, 1) * unit
                raise RequestError(
                    f"{name} must be a multiple of {unit} for this model, got {value}; try {low}"
                )
        notes = self.info.notes
        return replace(
            request.seeded(),
            width=width,
            height=height,
            steps=notes.steps if request.steps is None else request.steps,
            guidance=notes.guidance if request.guidance is None else request.guidance,
        )

    def noise(self, request: Request, seeds: Sequence[int]) -> Tensor:
        """Starting latents, float32, one a seed."""
        shape = (self.autoencoder.latent_channels, *self._latent_size(request))
        return noise_for(seeds, shape, self.device)

    def _latent_size(self, request: Request) -> tuple[int, int]:
        assert request.width
        assert request.height
        unit = self.autoencoder.compression
        return request.height // unit, request.width // unit

    def _band_memory(self, request: Request, notice: Notice) -> int | None:
        size = (min(request.images, IMAGES_AT_ONCE), *self._latent_size(request))
        return band_memory(self.autoencoder, size, memory=self.memory, notice=notice)

    def _solve(
        self, request: Request, texts: list[PreparedText], noise: Tensor, on_step: OnStep | None
    ) -> Tensor:
        assert request.steps is not None
        assert request.guidance is not None
        solver = SOLVERS[request.solver]
        velocity = guided_velocity([self._velocity(text) for text in texts], request.guidance)
        return solver.solve(velocity, noise, solver.sigmas(request.steps, self.shift), on_step)

    def _velocity(self, text: PreparedText) -> Velocity:
        def velocity(x: Tensor, timestep: Tensor) -> Tensor:
            return self.transformer.velocity(x, timestep.expand(len(x)), text)

        return velocity

    def _encode(self, request: Request) -> list[PreparedText]:
        """The prompt with the instruction; with guidance also the negative prompt, without it."""
        states = [self.text.encode([request.prompt])]
        if uses_guidance(request.guidance):
            states.append(self.text.encode_plain([request.negative_prompt]))
        return [self._prepare(state) for state in states]

    def _prepare(self, text: TextStates) -> PreparedText:
        return self.transformer.prepare_text(text.states.to(self.device), text.mask.to(self.device))

    def _report_truncation(self, request: Request, notice: Notice) -> None:
        cut = {"prompt": self.text.truncated(request.prompt)}
        if uses_guidance(request.guidance):
            negative = self.text.truncated(request.negative_prompt, plain=True)
            cut["negative prompt"] = negative
        for name, rest in cut.items():
            if rest:
                notice(f"the {name} is too long for the text encoder; left out: {rest!r}")

    def _picture(self, image: Image.Image, request: Request, seed: int) -> Picture:
        own = replace(request, seed=seed, images=1)
        dtype = str(self.transformer.dtype).removeprefix("torch.")
        return Picture(image, own, model=self.info.name, facts={"dtype": dtype})


def uses_guidance(scale: float | None) -> bool:
    """Guidance of 1 and less is none, as in the published pipeline."""
    assert scale is not None, "the model's own guidance is known once the request is complete"
    return scale > 1


def guided_velocity(velocities: Sequence[Velocity], scale: float) -> Velocity:
    """One velocity, or the conditional and the unconditional one guided."""
    if len(velocities) == 1:
        return velocities[0]
    conditional, unconditional = velocities
    return guided(conditional, unconditional, scale)


def _as_request(prompt: str | Request, fields: dict[str, Any]) -> Request:
    if isinstance(prompt, Request):
        return replace(prompt, **fields) if fields else prompt
    return Request(prompt, **fields)


def _chunks(seeds: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


def _overall(on_step: OnStep | None, chunk: int, chunks: int) -> OnStep | None:
    """Steps are counted over all chunks, so that progress runs once from start to end."""
    if on_step is None:
        return None
    return lambda step, total, x: on_step(chunk * total + step, chunks * total, x)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)

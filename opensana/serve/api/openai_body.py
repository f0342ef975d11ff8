"""What OpenAI's image API is asked: the bodies of generations and edits, each to an Order.

Unknown keys are errors, and so are values that mean something here but cannot be done. What other
servers added at the top level is here under the same names.
"""

import io
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from opensana.pictures.input import read_layer
from opensana.request import Request, SolverName
from opensana.serve.api.formats import QUALITY, Format
from opensana.serve.errors import ApiError
from opensana.serve.jobs.order import LoraChoice, Order, picture_bytes

SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")
HALF = 128
CLIENT_NAMES = {
    "images": "n",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
}
"""How OpenAI's clients call fields of an Order, for errors."""


class Lora(BaseModel):
    """One of the listed LoRAs; in a form its scale is a text."""

    model_config = ConfigDict(extra="forbid")

    name: str
    scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    sha256: str | None = None

    @property
    def choice(self) -> LoraChoice:
        return LoraChoice(self.name, self.scale, self.sha256)


class Generation(BaseModel):
    """The body of `POST /v1/images/generations`. null is as left out."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    """WIDTHxHEIGHT, or auto for what the model was trained at."""
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Format = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = QUALITY
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    quality: Literal["auto", "standard"] | None = None
    """Decided by `num_inference_steps` here."""
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    """Nothing is moderated."""
    user: str | None = None
    """Neither stored nor logged, as is `safety_identifier`."""
    safety_identifier: str | None = None

    seed: int | None = None
    num_inference_steps: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    cfg_scale: float | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    solver: SolverName | None = None
    lora: list[Lora] | None = None

    def check(self, model: str) -> Self:
        """ApiError for what does not go together, or for another model than this server's."""
        if self.model not in (None, model):
            raise ApiError(
                404,
                f"model must be {model!r} on this server, got {self.model!r}; or leave it out",
                param="model",
                code="model_not_found",
            )
        if self.partial_images and not self.stream:
            raise _wrong("partial_images", "partial_images come as events; add stream: true")
        if self.stream and self.response_format == "url":
            raise _wrong("response_format", "a stream carries b64_json; leave response_format out")
        return self

    def order(self) -> Order:
        """What is to be drawn."""
        return Order(request=self._request(), loras=tuple(one.choice for one in self.lora or ()))

    def _request(self, **more: Any) -> Request:
        width, height = self._size()
        return Request(
            self.prompt,
            negative_prompt=self.negative_prompt or "",
            width=width,
            height=height,
            steps=self._either("num_inference_steps", "steps"),
            guidance=self._either("guidance_scale", "cfg_scale"),
            seed=self.seed,
            images=1 if self.n is None else self.n,
            solver=self.solver,
            **more,
        )

    def _size(self) -> tuple[int | None, int | None]:
        if self.size in (None, "auto"):
            return self.width, self.height
        match = SIZE.fullmatch(self.size)
        if match is None:
            raise _wrong("size", f"size must be auto or as 1024x1024, got {self.size!r}")
        if (self.width, self.height) != (None, None):
            raise _wrong("size", "size was given beside width and height; leave one of them out")
        return int(match[1]), int(match[2])

    def _either(self, name: str, alias: str) -> Any:
        """The value of a field that has two names."""
        value, other = getattr(self, name), getattr(self, alias)
        if value is not None and other is not None:
            raise _wrong(name, f"{name} and {alias} are one and the same; leave one of them out")
        return other if value is None else value


class ImageReference(BaseModel):
    """A picture in a JSON body."""

    model_config = ConfigDict(extra="forbid")

    image_url: str
    """A data: URL; nothing is fetched."""


Source = str | bytes | ImageReference
"""Base64, a data: URL, or the content of a part of a form."""


class Edit(Generation):
    """The body of `POST /v1/images/edits`, as JSON or a form."""

    image: Source | list[Source] | None = None
    images: list[Source] | None = None
    mask: Source | None = None
    """Transparent where the picture is to be drawn anew."""
    input_fidelity: Literal["low"] | None = None
    """Decided by `strength` here."""
    strength: float | None = None

    def order(self) -> Order:
        given = self.image if isinstance(self.image, list) else [self.image]
        pictures = [one for one in (*given, *(self.images or ())) if one is not None]
        if len(pictures) != 1:
            raise _wrong("image", f"an edit starts from one image, got {len(pictures)}")
        mask = None if self.mask is None else _drawn_where_transparent(_content(self.mask, "mask"))
        return Order(
            request=self._request(strength=self.strength),
            image=_content(pictures[0], "image"),
            mask=mask,
            loras=tuple(one.choice for one in self.lora or ()),
        )


def form_body(parts: Mapping[str, list[str | bytes]]) -> dict[str, Any]:
    """The fields of a form as those of a JSON body; ApiError for one that is given twice."""
    body: dict[str, Any] = {}
    images = [*parts.get("image", ()), *parts.get("image[]", ())]
    if images:
        body["image"] = images
    names, scales = parts.get("lora[][name]", []), parts.get("lora[][scale]", [])
    if names:
        if scales and len(scales) != len(names):
            raise _wrong("lora", "lora needs a scale for each name, or for none")
        given = zip(names, scales or [1.0] * len(names), strict=True)
        body["lora"] = [{"name": name, "scale": scale} for name, scale in given]
    for name, values in parts.items():
        if name in ("image", "image[]", "lora[][name]", "lora[][scale]"):
            continue
        if len(values) > 1:
            raise _wrong(name, f"{name} was given {len(values)} times; give it once")
        body[name] = values[0]
    return body


def _content(source: Source, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    return picture_bytes(source if isinstance(source, str) else source.image_url, name)


def _drawn_where_transparent(mask: bytes) -> bytes:
    """OpenAI's mask, a hole where to draw, as ours: white where to draw, without transparency."""
    layer = read_layer(mask, "mask")
    if layer.shape[-1] != 4:
        raise _wrong(
            "mask", "mask has no transparency; make it transparent where to draw the picture anew"
        )
    hole = np.where(layer[..., 3] < HALF, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(hole).save(buffer, format="PNG")
    return buffer.getvalue()


def _wrong(param: str, message: str) -> ApiError:
    return ApiError(400, message, code="invalid_value", param=param)

"""Order: what a client asks for, whichever API it speaks."""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, get_args

from opensana.config import build
from opensana.drawing.inputs import Inputs
from opensana.errors import RequestError
from opensana.pictures.input import MOST_BYTES
from opensana.request import Request

InputName = Literal["image", "mask", "control_image"]
INPUT_NAMES: tuple[InputName, ...] = get_args(InputName)


@dataclass(frozen=True)
class LoraChoice:
    """One of the listed LoRAs, and how much of it."""

    __pydantic_config__: ClassVar[Any] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }

    name: str
    scale: float = 1.0
    sha256: str | None = None
    """Which file it must be; None is the one that is listed."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request with its pictures: the bytes of PNG, JPEG or WebP files, never a path or a URL."""

    request: Request
    image: bytes | None = None
    mask: bytes | None = None
    control_image: bytes | None = None
    control_scale: float = 1.0
    loras: tuple[LoraChoice, ...] = ()

    @property
    def inputs(self) -> Inputs:
        return Inputs(
            image=self.image,
            mask=self.mask,
            control_image=self.control_image,
            control_scale=self.control_scale,
        )

    @property
    def pictures(self) -> dict[InputName, bytes]:
        """The pictures that came with it."""
        return {name: data for name in INPUT_NAMES if (data := getattr(self, name)) is not None}

    @property
    def text(self) -> str:
        """All but its pictures, as JSON that `read_order` reads."""
        rest = {"control_scale": self.control_scale, "loras": [asdict(one) for one in self.loras]}
        return json.dumps({"request": asdict(self.request)} | rest, sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the whole order: the same one asks for the same."""
        found = hashlib.sha256(self.text.encode())
        for name, data in self.pictures.items():
            found.update(name.encode() + hashlib.sha256(data).digest())
        return found.hexdigest()


def read_order(text: str, pictures: Mapping[InputName, bytes]) -> Order:
    """The order that `Order.text` wrote, with its pictures."""
    value: dict[str, Any] = json.loads(text)
    return Order(
        request=build(Request, value["request"], where="order"),
        control_scale=value["control_scale"],
        loras=tuple(LoraChoice(**one) for one in value["loras"]),
        **pictures,
    )


def picture_bytes(text: str, name: str) -> bytes:
    """The bytes of a picture sent as base64 or as a data: URL; nothing is ever fetched."""
    head = text[:200].lstrip().lower()
    if head.startswith("data:"):
        kind, comma, text = text.partition(",")
        if not comma or not kind.rstrip().lower().endswith(";base64"):
            message = f"{name} is a data: URL without base64; send data:...;base64,..."
            raise RequestError(message, field=name)
    elif "://" in head or head.startswith(("file:", "//")):
        message = f"{name} is a URL, and none is fetched; send the picture as base64"
        raise RequestError(message, field=name)
    if len(text) > MOST_BYTES * 4 // 3 + 4:
        message = f"{name} is larger than {MOST_BYTES >> 20} MiB; send it smaller"
        raise RequestError(message, field=name)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        message = f"{name} is no valid base64 of a PNG, JPEG or WebP picture"
        raise RequestError(message, field=name) from None

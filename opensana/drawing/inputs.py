"""Inputs: the pictures that may come with a request. Their rules are checked here, once for all.

They are flags of `opensana generate` and keywords of `Sana.draw`; a server makes them from a body.
LoRAs are no part of them, since they are merged when a model is loaded (`models/options.py`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from opensana.errors import RequestError
from opensana.request import Request

if TYPE_CHECKING:
    from opensana.drawing.control_image import ControlImage
    from opensana.drawing.init_image import InitImage
    from opensana.pictures.input import ImageSource
else:  # as flags, for whose help nothing heavy is imported
    ImageSource = Path

MOST_SCALE = 10.0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Pictures to start from and to follow: files, their bytes, or images that are open."""

    image: Annotated[ImageSource | None, arg(metavar="FILE")] = None
    """Start from this picture instead of noise; its size is kept unless one is given."""
    mask: Annotated[ImageSource | None, arg(metavar="FILE")] = None
    """Draw anew only where this picture is white, or painted on a transparent ground; every other
    pixel of --image stays."""
    control_image: Annotated[ImageSource | None, arg(metavar="FILE")] = None
    """The picture that the ControlNet follows; it is scaled and cut to the size that is drawn."""
    control_scale: Annotated[float, arg(metavar="FACTOR")] = 1.0
    """How much the control image counts; 0 draws as without it."""


NO_INPUTS = Inputs()


def check_inputs(inputs: Inputs, request: Request, *, controlnet: bool) -> None:
    """RequestError unless they go together, with the request and with a model's `controlnet`."""
    if inputs.image is None:
        for name, value in (("mask", inputs.mask), ("strength", request.strength)):
            if value is not None:
                message = f"{name} was given without a picture; add the image to change"
                raise RequestError(message, field=name)
    elif request.binned:
        raise RequestError(
            "a picture to start from is drawn at its own size, not binned; leave binned out",
            field="binned",
        )
    scale = inputs.control_scale
    if inputs.control_image is None:
        if controlnet:
            raise RequestError(
                "a ControlNet needs a picture to follow, got none; add a control image",
                field="control_image",
            )
        if scale != 1:
            raise RequestError(
                f"control_scale {scale} was given without a control image; leave it out",
                field="control_scale",
            )
    elif not controlnet:
        raise RequestError(
            "a control image was given without a ControlNet; name one to follow it",
            field="control_image",
        )
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        message = f"control_scale must be a number, got {scale!r}; try 1.0"
        raise RequestError(message, field="control_scale")
    if not (math.isfinite(scale) and 0 <= scale <= MOST_SCALE):
        message = f"control_scale must be 0 to {MOST_SCALE:g}, got {scale}; try 1.0"
        raise RequestError(message, field="control_scale")


def read_inputs(
    inputs: Inputs, request: Request, *, controlnet: bool, notice: Callable[[str], None]
) -> "tuple[InitImage | None, ControlImage | None]":
    """The pictures, checked and read; `notice` gets a line on how a mask was understood."""
    from opensana.drawing.control_image import read_control_image
    from opensana.drawing.init_image import read_init_image

    check_inputs(inputs, request, controlnet=controlnet)
    image, control = inputs.image, inputs.control_image
    return (
        None if image is None else read_init_image(image, inputs.mask, notice),
        None if control is None else read_control_image(control, inputs.control_scale),
    )

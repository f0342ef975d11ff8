"""Control: the picture that a ControlNet follows, and how much it counts."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from opensana.errors import RequestError
from opensana.pictures.input import ImageSource, read_image, read_layer
from opensana.pictures.resize import covering

MOST_SCALE = 10.0
NEARLY_WHITE = 250


@dataclass(frozen=True)
class Control:
    """A control image; `read_control` makes one from a file."""

    image: Image.Image
    """RGB, of the kind that the ControlNet was trained with: edges, depth, a sketch."""
    scale: float = 1.0
    """What its influence is multiplied by; 0 draws as without it."""

    @property
    def digest(self) -> str:
        """SHA-256 of the size and the pixels."""
        size = f"{self.image.mode} {self.image.width} {self.image.height} ".encode()
        return hashlib.sha256(size + self.image.tobytes()).hexdigest()

    @property
    def facts(self) -> dict[str, Any]:
        """What a PNG remembers of what steered it."""
        return {"control_image_sha256": self.digest, "control_scale": self.scale}

    def fit(self, width: int, height: int, notice: Callable[[str], None]) -> "Control":
        """Scaled until it covers the size, then cut to it about its centre; `notice` is told."""
        size, had = (width, height), self.image.size
        if had == size:
            return self
        cut = "" if had[0] * height == had[1] * width else " and cut"
        notice(f"the control image of {had[0]} x {had[1]} was scaled{cut} to {width} x {height}")
        return replace(self, image=covering(self.image, *size))


def read_control(image: ImageSource | None, scale: float, *, expected: bool) -> Control | None:
    """The control of a request; `expected` by a model that has a ControlNet, and by no other."""
    if image is None and expected:
        raise RequestError("a ControlNet needs a picture to follow, got none; add a control image")
    if image is None and scale != 1:
        raise RequestError(f"control_scale {scale} was given without a control image; leave it out")
    if image is None:
        return None
    if not expected:
        raise RequestError("a control image was given without a ControlNet; name one to follow it")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise RequestError(f"control_scale must be a number, got {scale!r}; try 1.0")
    if not (math.isfinite(scale) and 0 <= scale <= MOST_SCALE):
        raise RequestError(f"control_scale must be 0 to {MOST_SCALE:g}, got {scale}; try 1.0")
    picture = read_image(image, "control image")
    if np.asarray(picture).min() >= NEARLY_WHITE:
        _check_not_lost(read_layer(image, "control image"))
    return Control(picture, float(scale))


def _check_not_lost(layer: np.ndarray) -> None:
    """White lines on a transparent layer, as painting programs save them, vanish on white."""
    opacity = layer[..., 3:]
    if opacity.size and opacity.max() > opacity.min():
        raise RequestError(
            "the control image is white on a transparent ground, and transparency is laid on "
            "white: nothing of it is left; lay it on the ground that it should have"
        )

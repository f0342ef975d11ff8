"""ControlImage: the picture that a ControlNet follows, and how much it counts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from opensana.drawing.recorded import DIGEST, digest
from opensana.errors import RequestError
from opensana.pictures.input import ImageSource, read_image, read_layer
from opensana.pictures.resize import covering

NEARLY_WHITE = 250


@dataclass(frozen=True)
class ControlImage:
    """A control image; `read_control_image` makes one from a file."""

    image: Image.Image
    """RGB, of the kind that the ControlNet was trained with: edges, depth, a sketch."""
    scale: float = 1.0
    """What its influence is multiplied by; 0 draws as without it."""

    @property
    def provenance(self) -> dict[str, Any]:
        """What a PNG remembers of what steered it: SHA-256 of the pixels, and the scale."""
        return {"control_image" + DIGEST: digest(self.image), "control_scale": self.scale}

    def resized(self, width: int, height: int) -> "ControlImage":
        """Scaled until it covers the size, then cut to it about its centre."""
        if self.image.size == (width, height):
            return self
        return replace(self, image=covering(self.image, width, height))

    def resize_notes(self, width: int, height: int) -> Iterator[str]:
        """What the user should know of `resized`."""
        had = self.image.size
        if had != (width, height):
            cut = "" if had[0] * height == had[1] * width else " and cut"
            yield (
                f"the control image of {had[0]} x {had[1]} was scaled{cut} to {width} x {height}"
            )


def read_control_image(source: ImageSource, scale: float) -> ControlImage:
    """The picture, read; RequestError where white lines would vanish."""
    picture = read_image(source, "control image")
    if np.asarray(picture).min() >= NEARLY_WHITE:
        _check_not_lost(read_layer(source, "control image"))
    return ControlImage(picture, float(scale))


def _check_not_lost(layer: np.ndarray) -> None:
    """White lines on a transparent layer, as painting programs save them, vanish on white."""
    opacity = layer[..., 3:]
    if opacity.size and opacity.max() > opacity.min():
        raise RequestError(
            "the control image is white on a transparent ground, and transparency is laid on "
            "white: nothing of it is left; lay it on the ground that it should have",
            field="control_image",
        )

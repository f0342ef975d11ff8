"""Which part of a mask was drawn, whether its colour or its transparency carries that.

Without transparency white is drawn and black is not. Painting programs also save what was painted
on a transparent layer: there the paint is the drawn part, and the colour beneath transparency,
which each of them chooses differently, says nothing. OpenAI's edits and ComfyUI go the other way:
all is opaque but a hole that is to be drawn anew. Where a mask may mean either, it is refused.
"""

import numpy as np
from PIL import Image

from opensana.errors import RequestError

LIGHT = 128
SOLID = 0.9  # of the greatest opacity: inside a stroke, not on its soft edge
ONE_COLOUR = 64  # levels between which a stroke stays one colour, for what lossy files do to it
SAMPLE = 100_000
ADVICE = "paint white what should be drawn anew and all else black, without transparency"


def drawn_part(layer: np.ndarray) -> tuple[np.ndarray, str | None]:
    """True where to draw anew, bool [H, W], and what the user should know of how it was read.

    `layer` is uint8 [H, W, 3], or [H, W, 4] with transparency. RequestError if it is unclear.
    """
    colour, opacity = layer[..., :3], layer[..., 3] if layer.shape[-1] == 4 else None
    if opacity is None:
        return _is_light(colour), None
    if not opacity.any():
        raise _refused("transparent on the whole picture")
    visible = opacity >= opacity.max() / 2
    if visible.all():
        return _is_light(colour), None
    paint = colour[opacity >= SOLID * opacity.max()]
    paint = paint[:: 1 + len(paint) // SAMPLE]
    low, middle, high = np.quantile(paint, (0.05, 0.5, 0.95), axis=0, method="nearest")
    if (high.astype(int) - low > ONE_COLOUR).any():
        raise _refused("unclear: it is transparent in part and has several colours in the rest")
    if middle.max() >= LIGHT:
        return visible & (colour.max(axis=-1) >= LIGHT), None
    if 2 * np.count_nonzero(visible) > visible.size:
        return ~visible, "the mask is black with a transparent hole: the hole is drawn anew"
    raise _refused("unclear: it is black on a transparent ground")


def _refused(why: str) -> RequestError:
    return RequestError(f"the mask is {why}; {ADVICE}", field="mask")


def _is_light(colour: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(colour)).convert("L")) >= LIGHT

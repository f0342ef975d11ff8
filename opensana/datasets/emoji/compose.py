"""Scenes: emoji composed on a coloured background, with the truth known in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opensana.datasets.emoji.captions import with_article
from opensana.errors import DataError, near

SIZE = 256

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 27),
    "gray": (148, 150, 156),
    "red": (214, 57, 57),
    "orange": (240, 140, 50),
    "yellow": (250, 209, 72),
    "green": (70, 164, 86),
    "blue": (58, 114, 214),
    "purple": (132, 82, 190),
    "pink": (240, 152, 188),
    "brown": (128, 88, 60),
    "light blue": (178, 216, 246),
    "light green": (190, 230, 184),
}
SCALES: dict[str, float] = {"full": 1.0, "large": 0.8, "medium": 0.6, "small": 0.4}

# Position name -> centre of the emoji as a share of the free room (0 = left or top, 1 = right).
POSITIONS: dict[str, tuple[float, float]] = {
    "center": (0.5, 0.5),
    "left": (0.0, 0.5),
    "right": (1.0, 0.5),
    "top": (0.5, 0.0),
    "bottom": (0.5, 1.0),
    "top left corner": (0.0, 0.0),
    "top right corner": (1.0, 0.0),
    "bottom left corner": (0.0, 1.0),
    "bottom right corner": (1.0, 1.0),
}
PAIRS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "left of": ((0.0, 0.5), (1.0, 0.5)),
    "above": ((0.5, 0.0), (0.5, 1.0)),
}
PAIR_SCALE = 0.5
# The same relation told from the other side.
REVERSED = {"left of": "right of", "above": "below"}


@dataclass(frozen=True)
class Scene:
    """One emoji on a background, or two, whose relation is then the `position`."""

    emoji: tuple[int, ...]
    background: str = "white"
    size: str = "full"
    position: str = "center"

    def __post_init__(self) -> None:
        if len(self.emoji) not in (1, 2):
            raise DataError(f"a scene has one or two emoji, got {len(self.emoji)}")
        places = POSITIONS if len(self.emoji) == 1 else PAIRS
        for value, table in (
            (self.background, COLOURS),
            (self.size, SCALES),
            (self.position, places),
        ):
            if value not in table:
                raise DataError(f"a scene cannot have {value!r}{near(value, list(table))}")


def compose(scene: Scene, pictures: np.ndarray, *, size: int = SIZE) -> np.ndarray:
    """Draw a scene from RGBA pictures [K, 256, 256, 4] as RGB uint8 [size, size, 3]."""
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = COLOURS[scene.background]
    pair = len(scene.emoji) == 2
    scale = PAIR_SCALE if pair else SCALES[scene.size]
    places = PAIRS[scene.position] if pair else (POSITIONS[scene.position],)
    for emoji, place in zip(scene.emoji, places, strict=True):
        _paste(canvas, np.asarray(pictures[emoji]), scale=scale, place=place)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def box(scale: float, place: tuple[float, float], *, size: int = SIZE) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels of an emoji at a place."""
    side = round(size * scale)
    left, top = (round((size - side) * share) for share in place)
    return left, top, left + side, top + side


def _paste(
    canvas: np.ndarray, picture: np.ndarray, *, scale: float, place: tuple[float, float]
) -> None:
    """Lay a picture over the canvas; colours are premultiplied by alpha before resampling."""
    left, top, right, bottom = box(scale, place, size=len(canvas))
    side = right - left
    if side == len(picture):
        alpha = picture[..., 3:].astype(np.float32) / 255
        colour = picture[..., :3].astype(np.float32) * alpha
    else:
        premultiplied = Image.fromarray(picture).convert("RGBa")
        layer = np.asarray(premultiplied.resize((side, side), Image.Resampling.LANCZOS), np.float32)
        colour, alpha = layer[..., :3], layer[..., 3:] / 255
    under = canvas[top:bottom, left:right]
    under[:] = colour + under * (1 - alpha)


def describe(scene: Scene, *captions: str, mention_white: bool = False) -> str:
    """The scene in words, one caption per emoji: "a red apple on a blue background"."""
    assert len(captions) == len(scene.emoji)
    if len(captions) == 2:
        subject = f"{with_article(captions[0])} {scene.position} {with_article(captions[1])}"
    else:
        subject = _single(scene, captions[0])
    return _on_background(scene, subject, mention_white=mention_white)


def describe_reversed(scene: Scene, one: str, other: str) -> str:
    """A pair told from its second emoji: "a dog right of a cat"."""
    subject = f"{with_article(other)} {REVERSED[scene.position]} {with_article(one)}"
    return _on_background(scene, subject)


def _on_background(scene: Scene, subject: str, *, mention_white: bool = False) -> str:
    if scene.background == "white" and not mention_white:
        return subject
    if "," in subject:
        return f"{subject}, {scene.background} background"
    return f"{subject} on {with_article(scene.background)} background"


def _single(scene: Scene, caption: str) -> str:
    size = f"{scene.size} " if scene.size in ("small", "large") else ""
    place = f" in the {scene.position}" if "corner" in scene.position else ""
    if scene.position in ("left", "right", "top", "bottom"):
        place = f" on the {scene.position}" if scene.position in ("left", "right") else ""
        place = place or f" at the {scene.position}"
    if "," in caption:
        return caption + place.replace(" ", ", ", 1)
    return with_article(f"{size}{caption}") + place


def compose_batch(scenes: Sequence[Scene], pictures: np.ndarray, *, size: int = SIZE) -> np.ndarray:
    """Scenes as RGB uint8 [B, size, size, 3]."""
    return np.stack([compose(scene, pictures, size=size) for scene in scenes])

"""Reference emoji on every background, from two: compositions are affine in its colour."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from opensana.datasets.emoji.compose import COLOURS, PAIR_SCALE, PAIRS, SIZE, Scene, box, compose
from opensana.datasets.emoji.dataset import EmojiData, Record
from opensana.evaluate.emoji.nearest import SMALL, References, references, shrink


@dataclass(frozen=True)
class Backgrounds:
    """The same emoji on white and on black; composed on another colour they are between the two."""

    white: References
    black: References

    def on(self, background: str) -> References:
        """The references on one of `COLOURS`, exact to the rounding of 8 bits."""
        names = ("black", "white", background)
        low, high, wanted = (np.array(COLOURS[name], np.float32) for name in names)
        share = np.tile((wanted - low) / (high - low), SMALL * SMALL)
        pixels = self.black.pixels + (self.white.pixels - self.black.pixels) * share
        return References(pixels, self.white.records)


def whole(data: EmojiData, records: Sequence[Record]) -> Backgrounds:
    """Single emoji that fill the picture."""
    return Backgrounds(references(data, records), references(data, records, "black"))


def halves(data: EmojiData, records: Sequence[Record]) -> Backgrounds:
    """Emoji of a pair, each with the background in its own box; the same at all four places."""

    def on(background: str) -> References:
        pixels = [shrink(_half(data, record, background)) for record in records]
        return References(np.stack(pixels), tuple(records))

    return Backgrounds(on("white"), on("black"))


def _half(data: EmojiData, record: Record, background: str) -> np.ndarray:
    scene = Scene((record.index, record.index), background=background, position="left of")
    left, top, right, bottom = box(PAIR_SCALE, PAIRS[scene.position][0])
    return compose(scene, data.pictures)[top:bottom, left:right]


def cut(picture: Image.Image, place: tuple[float, float]) -> Image.Image:
    """The box of an emoji of a pair, out of a picture of any size."""
    return picture.convert("RGB").resize((SIZE, SIZE)).crop(box(PAIR_SCALE, place))

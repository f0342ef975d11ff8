"""Emoji in other colours: hue, chroma and lightness are moved in CIELAB, the shading stays.

What is moved is the main colour of a kind: all pixels whose hue is near to it or, of a grey or
white kind, all that have none. Eyes, stems and highlights keep theirs.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from opensana.datasets.emoji.lab import from_lab, to_lab

# Name -> sRGB of the flat part of an object in that colour.
OBJECT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 48),
    "orange": (248, 134, 26),
    "yellow": (252, 208, 48),
    "green": (48, 160, 74),
    "blue": (36, 104, 220),
    "purple": (132, 66, 196),
    "pink": (246, 138, 190),
    "brown": (122, 78, 48),
    "gray": (146, 148, 154),
}
LEAST_SHARE = 0.55
"""A kind is of one colour when so much of what is opaque has its main colour."""
HUE_RANGE, FADING = 32.0, 12.0
"""Degrees to either side of the main hue, and beyond them, where pixels are moved ever less."""
COLOURLESS = 12.0  # chroma below which a pixel has no hue
LILAC, LILAC_RANGE, SHADED = -60.0, 40.0, 26.0
"""White is shaded with lilac here: about this hue, a pixel of less than such a chroma has none."""
DARK = 22.0  # L* below which a colourless pixel is an eye or a line

# Judged by eye, on a sheet of every kind in every colour: kinds of less than the share that look
# right, and kinds of more of which something else is coloured than their name says.
LOOK_RIGHT = frozenset((
    "face with tears of joy", "smiling face with sunglasses", "nerd face", "loudly crying face",
    "horse face", "frog", "butterfly", "lady beetle", "sunflower", "ear of corn", "popcorn",
    "cooked rice", "tropical drink", "cup with straw", "fire engine", "taxi", "automobile",
    "delivery truck", "tractor", "racing car", "motorcycle", "rocket", "alarm clock", "mirror",
    "thermometer", "thread", "lipstick", "skull",
))  # fmt: skip
LOOK_WRONG = frozenset((
    "cowboy hat face", "partying face", "octopus", "tropical fish", "fly", "bagel", "sushi", "salt",
    "fish cake with swirl", "glass of milk", "chocolate bar", "bottle with popping cork", "desert",
    "globe showing Americas", "volcano", "stadium", "bridge at night", "Japanese castle",
    "ferris wheel", "canoe", "passenger ship", "kick scooter", "bicycle", "satellite", "comet",
    "flying saucer", "fireworks", "joker", "necktie", "mouse trap", "lion", "diving mask",
))  # fmt: skip


@dataclass(frozen=True)
class MainColour:
    """What most of a kind is painted with."""

    lab: np.ndarray
    """Its median, CIELAB."""
    share: float
    """Of all that is opaque."""
    amount: np.ndarray
    """How much each pixel belongs to it, [H, W] in 0..1."""

    @cached_property
    def name(self) -> str:
        """The nearest of the nine colours."""
        return nearest_colour(self.lab)


@lru_cache
def _targets() -> np.ndarray:
    return to_lab(np.array(list(OBJECT_COLOURS.values()), np.float64))


def nearest_colour(lab: np.ndarray) -> str:
    """The nearest of the nine to a CIELAB colour; lightness counts half, as shading moves it."""
    distance = (_targets() - lab) * np.array([0.5, 1.0, 1.0])
    return list(OBJECT_COLOURS)[int(np.argmin(np.square(distance).sum(-1)))]


def can_be_coloured(label: str, share: float) -> bool:
    """Whether a kind is shown in other colours than its own."""
    return label in LOOK_RIGHT or (share >= LEAST_SHARE and label not in LOOK_WRONG)


def says_colour(name: str, colours: Collection[str] = OBJECT_COLOURS) -> str | None:
    """The colour that a name begins with: "red" of "red apple"."""
    first = name.lower().split(" ")[0]
    return first if first in colours else None


def main_colour(picture: np.ndarray) -> MainColour:
    """Measure an RGBA picture [H, W, 4]."""
    lab = to_lab(picture[..., :3].astype(np.float32))
    alpha = picture[..., 3] / np.float32(255)
    chroma, hue = np.hypot(lab[..., 1], lab[..., 2]), _hue(lab)
    shaded = np.clip(2 - _turn(hue, LILAC) / LILAC_RANGE, 0, 1)
    least = COLOURLESS + (SHADED - COLOURLESS) * shaded
    plain = np.clip((least + 4 - chroma) / 4, 0, 1) * np.clip((lab[..., 0] - DARK) / 8, 0, 1)

    counted = alpha * (chroma >= COLOURLESS) * chroma
    histogram = np.histogram(hue, bins=72, range=(-180, 180), weights=counted)[0]
    wide = sum(np.roll(histogram, shift) for shift in range(-3, 4))
    centre = -177.5 + 5 * int(np.argmax(wide))
    near = np.clip(1 - (_turn(hue, centre) - HUE_RANGE) / FADING, 0, 1)
    near = near * np.clip((chroma - 5) / (COLOURLESS - 5), 0, 1)

    amount = near if (alpha * near).sum() >= (alpha * plain).sum() else plain
    weight = alpha * (amount > 0.5)
    inside = lab[weight > 0.5]
    middle = np.median(inside, axis=0) if len(inside) else np.zeros(3)
    return MainColour(middle, float(weight.sum() / max(alpha.sum(), 1.0)), amount)


def recolour(picture: np.ndarray, colour: str, main: MainColour) -> np.ndarray:
    """The picture [H, W, 4], uint8, with its main colour moved to one of the nine."""
    target = _targets()[list(OBJECT_COLOURS).index(colour)]
    moving = (main.amount > 0) & (picture[..., 3] > 0)
    lab = to_lab(picture[moving][:, :3].astype(np.float32))
    moved = np.empty_like(lab)
    moved[:, 0] = _bent(lab[:, 0], main.lab[0], target[0])
    own = np.hypot(*main.lab[1:])
    if own >= COLOURLESS:
        # What the shading changes of hue and chroma stays as it is, about the new colour.
        turn = np.radians(_hue(target) - _hue(main.lab))
        scale = np.hypot(*target[1:]) / own
        moved[:, 1] = scale * (np.cos(turn) * lab[:, 1] - np.sin(turn) * lab[:, 2])
        moved[:, 2] = scale * (np.sin(turn) * lab[:, 1] + np.cos(turn) * lab[:, 2])
    else:
        # What has no hue is tinted, the highlights less.
        tint = np.clip((100 - moved[:, :1]) / (100 - target[0]), 0, 1)
        moved[:, 1:] = target[1:] * tint
    result = picture.copy()
    result[moving, :3] = from_lab(lab + main.amount[moving][:, None] * (moved - lab))
    return result


def _bent(lightness: np.ndarray, own: float, target: float) -> np.ndarray:
    """Lightness along a broken line that keeps black and white and leads from one to the other."""
    low = lightness * target / max(own, 1.0)
    high = 100 - (100 - lightness) * (100 - target) / max(100 - own, 1.0)
    return np.where(lightness <= own, low, high)


def _hue(lab: np.ndarray) -> np.ndarray:
    """Degrees in -180..180."""
    return np.degrees(np.arctan2(lab[..., 2], lab[..., 1]))


def _turn(hue: np.ndarray, other: float) -> np.ndarray:
    """Degrees between two hues, 0..180."""
    return np.abs((hue - other + 180) % 360 - 180)

"""Scenes of one to five objects whose truth is known: what stands where, how large, in what colour.

What words leave open has one answer: three of a kind always stand in the same triangle. A text then
has one picture, which a small model learns soonest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from opensana.datasets.emoji.compose import COLOURS, POSITIONS, SIZE
from opensana.datasets.emoji.recolour import OBJECT_COLOURS, MainColour, main_colour, recolour
from opensana.errors import DataError, near

MOST = 5
"""Objects of a scene."""
SIZES: dict[str, float] = {"tiny": 0.5, "small": 0.75, "plain": 1.0, "big": 1.0}
"""Shares of the plain side, such that all are whole latents large."""
PLACED, PLACED_BIG = 0.5, 0.625
"""The share of the picture's side that an object takes for which a place is named."""
PLACES = tuple(POSITIONS)

Corner = tuple[float, float]
HALVES: dict[str, tuple[Corner, Corner]] = {
    "and": ((0.0, 0.25), (0.5, 0.25)),
    "left of": ((0.0, 0.25), (0.5, 0.25)),
    "right of": ((0.5, 0.25), (0.0, 0.25)),
    "next to": ((0.0, 0.25), (0.5, 0.25)),
    "above": ((0.25, 0.0), (0.25, 0.5)),
    "below": ((0.25, 0.5), (0.25, 0.0)),
}
"""Left and top of two objects, each half as large as the picture, for each relation."""
FRONT, BACK = (0.25, 0.5, 0.5), (0.125, 0.0, 0.75)
"""Left, top and side: who stands in front of whom."""
RELATIONS = (*HALVES, "in front of")
GRID: dict[int, tuple[float, tuple[Corner, ...]]] = {
    2: (0.5, HALVES["and"]),
    3: (0.5, ((0.25, 0.0), (0.0, 0.5), (0.5, 0.5))),
    4: (0.5, ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5))),
    5: (0.375, ((0.0, 0.0), (0.625, 0.0), (0.3125, 0.3125), (0.0, 0.625), (0.625, 0.625))),
}
"""The side, and left and top, of so many objects, in reading order, as on a die.

They stand on the borders of latents. Up to four are as large as one of a pair, which is the same to
a model; five are as large as a small one, and the corners of the middle one touch the others.
"""


@dataclass(frozen=True)
class Group:
    """So many of one kind, the index of its picture; colour None is the kind's own."""

    kind: int
    number: int = 1
    colour: str | None = None
    size: str = "plain"


@dataclass(frozen=True)
class Background:
    """One colour, or two: from the first at the top it fades into the other."""

    top: str = "white"
    bottom: str | None = None


WHITE = Background()


@dataclass(frozen=True)
class Composition:
    """Groups on a background; two single objects have a relation, one alone may have a place."""

    groups: tuple[Group, ...]
    relation: str = "and"
    place: str | None = None
    background: Background = WHITE

    def __post_init__(self) -> None:
        if not 1 <= self.total <= MOST or any(group.number < 1 for group in self.groups):
            raise DataError(f"a scene has 1 to {MOST} objects, got {self.total}")
        if self.relation != "and" and not self.pair:
            raise DataError(f"{self.relation!r} needs two single objects")
        if self.place is not None and self.total != 1:
            raise DataError(f"{self.place!r} needs one object alone")
        colours = [group.colour for group in self.groups]
        for values, table in (
            ([self.relation], RELATIONS),
            ([self.place], PLACES),
            ([group.size for group in self.groups], SIZES),
            (colours, OBJECT_COLOURS),
            ([self.background.top, self.background.bottom], COLOURS),
        ):
            for value in values:
                if value is not None and value not in table:
                    raise DataError(f"a scene cannot have {value!r}{near(value, list(table))}")

    @property
    def total(self) -> int:
        return sum(group.number for group in self.groups)

    @property
    def pair(self) -> bool:
        """Two single objects."""
        return len(self.groups) == 2 and self.total == 2

    @property
    def key(self) -> str:
        """All of it in one line, another one for another scene."""
        groups = "+".join(
            f"{group.number}x{group.kind}:{group.colour or ''}:{group.size}"
            for group in self.groups
        )
        colours = "-".join(name for name in vars(self.background).values() if name)
        return f"{groups}/{self.relation}/{self.place or ''}/{colours}"


@dataclass(frozen=True)
class Placed:
    """One object where it stands: left, top and side in shares of the picture's side."""

    kind: int
    colour: str | None
    left: float
    top: float
    side: float

    def pixels(self, size: int) -> tuple[int, int, int]:
        """Left, top and side in a picture of `size` pixels."""
        return round(self.left * size), round(self.top * size), round(self.side * size)

    @property
    def centre(self) -> tuple[float, float]:
        return self.left + self.side / 2, self.top + self.side / 2


def placed(scene: Composition) -> list[Placed]:
    """The objects in the order of the words."""
    each = [group for group in scene.groups for _ in range(group.number)]
    slots = _slots(scene)
    objects = []
    for group, (left, top, side) in zip(each, slots, strict=True):
        share = SIZES[group.size]
        if scene.place is not None:
            side = (PLACED_BIG if group.size == "big" else PLACED) * share
            left, top = ((1 - side) * part for part in POSITIONS[scene.place])
        else:
            left, top = left + side * (1 - share) / 2, top + side * (1 - share) / 2
            side *= share
        objects.append(Placed(group.kind, group.colour, left, top, side))
    return objects


def _slots(scene: Composition) -> list[tuple[float, float, float]]:
    """Left, top and side for every object."""
    if scene.total == 1:
        return [(0.0, 0.0, 1.0)]
    if scene.relation == "in front of":
        return [FRONT, BACK]
    if scene.pair:
        return [(left, top, 0.5) for left, top in HALVES[scene.relation]]
    side, corners = GRID[scene.total]
    return [(left, top, side) for left, top in corners]


class Painter:
    """Draws scenes from RGBA pictures [K, 256, 256, 4]; measured and moved colours are kept."""

    def __init__(self, pictures: np.ndarray) -> None:
        self.pictures = pictures
        self.main = lru_cache(maxsize=None)(self._main)
        self._layer = lru_cache(maxsize=1024)(self._make_layer)
        self._coloured = lru_cache(maxsize=4096)(self._make_coloured)

    def draw(self, scene: Composition, *, size: int = SIZE) -> np.ndarray:
        """A scene as RGB uint8 [size, size, 3]."""
        canvas = background(scene.background, size)
        objects = placed(scene)
        # What stands in front is painted last.
        for one in reversed(objects) if scene.relation == "in front of" else objects:
            left, top, side = one.pixels(size)
            layer = self._layer(one.kind, one.colour, side)
            under = canvas[top : top + side, left : left + side]
            under[:] = layer[..., :3] + under * (1 - layer[..., 3:] / 255)
        return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)

    def draw_all(self, scenes: Sequence[Composition], *, size: int = SIZE) -> np.ndarray:
        """Scenes as RGB uint8 [B, size, size, 3]."""
        return np.stack([self.draw(scene, size=size) for scene in scenes])

    def picture(self, kind: int, colour: str | None) -> np.ndarray:
        """The RGBA picture [256, 256, 4] of a kind, in a colour if one is named."""
        return np.asarray(self.pictures[kind]) if colour is None else self._coloured(kind, colour)

    def _main(self, kind: int) -> MainColour:
        return main_colour(np.asarray(self.pictures[kind]))

    def _make_coloured(self, kind: int, colour: str) -> np.ndarray:
        return recolour(np.asarray(self.pictures[kind]), colour, self.main(kind))

    def _make_layer(self, kind: int, colour: str | None, side: int) -> np.ndarray:
        """RGBA float32 [side, side, 4] in 0..255, colours multiplied by alpha."""
        image = Image.fromarray(self.picture(kind, colour)).convert("RGBa")
        if side != image.width:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        return np.asarray(image, np.float32)


def background(colours: Background, size: int = SIZE) -> np.ndarray:
    """A background alone, float32 [size, size, 3] in 0..255."""
    first = np.array(COLOURS[colours.top], np.float32)
    last = first if colours.bottom is None else np.array(COLOURS[colours.bottom], np.float32)
    share = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    return np.broadcast_to(first + (last - first) * share, (size, size, 3)).copy()

"""Curves of runs as one PNG: a few lines, two axes, a legend."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

from opensana.errors import DataError

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 960, 540
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 24, 48
FINER = 2  # drawn so much larger and averaged down, which smooths slanted lines
BINS = 400
FEW = 16
# Okabe and Ito's colours, which colour-blind people can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` along pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the axis; on a logarithmic one 1, 2 and 5 of each decade."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            marks = [part * 10.0**decade for decade in decades for part in (1, 2, 5)]
            return [mark for mark in marks if self.low <= mark <= self.high]
        step = _round_step((self.high - self.low) / 6)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


def plot(
    path: Path | str,
    curves: Mapping[str, Points],
    *,
    label: str,
    log: bool = False,
    across_label: str = "step",
    legend: Literal["top", "bottom"] = "top",
) -> None:
    """Write curves by name; `label` names the vertical axis. On a logarithmic one, above 0 only.

    Few points are marked. The legend stands at the right, at the end where the curves are not.
    """
    drawn = {name: _binned([p for p in c if p[1] > 0 or not log]) for name, c in curves.items()}
    points = [point for curve in drawn.values() for point in curve]
    if not points:
        raise DataError(f"there is nothing to draw: no {label} {'above 0 ' if log else ''}yet")
    across, up = _axes(points, log=log)
    sheet = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER), "white")
    pen = ImageDraw.Draw(sheet)
    _draw_axes(pen, across, up, label, across_label)
    for index, (name, curve) in enumerate(drawn.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = [(across.place(x) * FINER, up.place(y) * FINER) for x, y in curve]
        pen.line(points, fill=colour, width=2 * FINER, joint="curve")
        for point in points if len(points) <= FEW else (points[0], points[-1]):
            pen.circle(point, 3 * FINER, fill=colour)
        row = TOP + 12 + 18 * index
        if legend == "bottom":
            row = HEIGHT - BOTTOM - 12 - 18 * (len(drawn) - 1 - index)
        _draw_name(pen, name, row, colour)
    sheet.resize((WIDTH, HEIGHT), Image.Resampling.BOX).save(path, format="PNG")


def _draw_name(pen: ImageDraw.ImageDraw, name: str, row: int, colour: str) -> None:
    """A line of the legend: a stroke in the curve's colour, then its name."""
    right, row = (WIDTH - RIGHT - 8) * FINER, row * FINER
    _write(pen, (right, row), name, "rm")
    left = right - pen.textlength(name, font=_font()) - 8 * FINER
    pen.line([(left - 24 * FINER, row), (left, row)], colour, 3 * FINER)


def _axes(points: Points, *, log: bool) -> tuple[Axis, Axis]:
    """Both axes, wide enough for all points; a single value gets some room."""
    steps, values = [p[0] for p in points], [p[1] for p in points]
    low, high = min(values), max(values)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    across = Axis(min(steps), max(max(steps), min(steps) + 1), LEFT, WIDTH - RIGHT)
    return across, Axis(low, high, HEIGHT - BOTTOM, TOP, log)


def _draw_axes(
    pen: ImageDraw.ImageDraw, across: Axis, up: Axis, label: str, across_label: str
) -> None:
    for mark in up.ticks():
        y = up.place(mark) * FINER
        pen.line([(LEFT * FINER, y), ((WIDTH - RIGHT) * FINER, y)], "#DDDDDD", FINER)
        _write(pen, ((LEFT - 8) * FINER, y), f"{mark:g}", "rm")
    for mark in across.ticks():
        x = across.place(mark) * FINER
        pen.line([(x, TOP * FINER), (x, (HEIGHT - BOTTOM) * FINER)], "#DDDDDD", FINER)
        _write(pen, (x, (HEIGHT - BOTTOM + 8) * FINER), f"{mark:,.10g}", "mt")
    _write(pen, ((LEFT + WIDTH - RIGHT) / 2 * FINER, (HEIGHT - 6) * FINER), across_label, "mb")
    _write(pen, (8 * FINER, 6 * FINER), label, "lt")


def _write(pen: ImageDraw.ImageDraw, point: tuple[float, float], text: str, anchor: str) -> None:
    pen.text(point, text, fill="black", font=_font(), anchor=anchor)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13 * FINER)


def _binned(points: Points) -> Points:
    """At most BINS points, each the mean of its neighbours."""
    size = -(-len(points) // BINS) or 1
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in p) / len(p), sum(y for _, y in p) / len(p)) for p in parts]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... and their tenths that is not below `least`."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(part * decade for part in (1, 2, 5, 10) if part * decade >= least * (1 - 1e-9))
